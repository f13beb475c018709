"""Serve a web page on this computer that predicts on photographs and shows maps of features and attention."""

from __future__ import annotations

import argparse
import os
import sys

from swinv2_mm_cli import (
    add_cfg_options,
    add_config,
    add_device,
    add_trust,
    make_parser,
    prepare_process,
    require_config,
    require_paths,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'model',
        nargs='?',
        help='work directory, checkpoint, or URL of a checkpoint (default: work_dirs/demo, of make demo)',
    )
    add_config(parser)
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
    add_trust(parser)
    add_device(parser)
    add_cfg_options(parser, 'model.test_cfg.rcnn.nms.iou_threshold=0.6')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    if args.model is None:
        args.model = 'work_dirs/demo'
        if not os.path.exists(args.model):
            print('Name a model: swinv2-mm web WORK_DIR. Or run make demo first.', file=sys.stderr)
            return 2
    require_paths('checkpoint', args.model)
    require_config(args.config)
    prepare_process(args.device)
    from swinv2_mm.apis.web import web

    return web(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
