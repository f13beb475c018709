"""Analyze a trained model: confusion matrix, precision and recall by class, worst images."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, make_parser, require_config, require_paths, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument('model', help='work directory, checkpoint, or URL of a checkpoint')
    add_options(parser, '--config')
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        default='test',
        help='data of the val_dataloader or test_dataloader of the config (default: test)',
    )
    parser.add_argument(
        '--results',
        metavar='F',
        help="a detector's COCO json of `test --out` on these data; the model is not run",
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='score from which objects of a detector count (default: 0.3)',
    )
    parser.add_argument(
        '--out', default='analysis', metavar='D', help='folder for the report (default: analysis)'
    )
    parser.add_argument(
        '--worst',
        type=int,
        default=12,
        metavar='N',
        help='number of images to show (default: 12)',
    )
    add_options(parser, '--trust-checkpoint', '--device', example='test_dataloader.batch_size=4')
    args = parser.parse_args()
    require_paths('checkpoint', args.model)
    require_paths('file of results', args.results)
    require_config(args.config)
    return run('swinv2_mm.apis.analyze:analyze', args)


if __name__ == '__main__':
    sys.exit(main())
