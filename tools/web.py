"""Serve a web page on this computer that predicts on photographs and shows maps of features and attention."""

from __future__ import annotations

import os
import sys

from swinv2_mm_cli import add_options, make_parser, require_config, require_paths, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'model',
        nargs='?',
        help='work directory, checkpoint, or URL of a checkpoint (default: work_dirs/demo, of make demo)',
    )
    add_options(parser, '--config')
    parser.add_argument(
        '--port', type=int, default=7860, metavar='N', help='default: 7860; 0: any free one'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        metavar='H',
        help='address to listen at; with 0.0.0.0 everyone in the network can open the page, without a password '
        '(default: 127.0.0.1, this computer only)',
    )
    add_options(
        parser,
        '--trust-checkpoint',
        '--device',
        example='model.test_cfg.rcnn.nms.iou_threshold=0.6',
    )
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error(f'--port {args.port}: expected a number from 0 to 65535')
    if args.model is None:
        args.model = 'work_dirs/demo'
        if not os.path.exists(args.model):
            print('Name a model: swinv2-mm web WORK_DIR. Or run make demo first.', file=sys.stderr)
            return 2
    require_paths('checkpoint', args.model)
    require_config(args.config)
    return run('swinv2_mm.apis.web:web', args)


if __name__ == '__main__':
    sys.exit(main())
