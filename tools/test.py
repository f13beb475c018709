"""Evaluate a checkpoint of a detector, segmentor or classifier."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, make_parser, require_config, require_paths, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help='checkpoint file, or a work directory for its newest one'
    )
    parser.add_argument(
        '--work-dir', help='folder for the log and test_metrics.json (default: work_dirs/<config>)'
    )
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's, or a flip"
    )
    parser.add_argument(
        '--tta-scales',
        type=float,
        nargs='+',
        default=(),
        metavar='S',
        help='test-time augmentation at these multiples of the size, e.g. 0.75 1 1.25, with and without a flip',
    )
    parser.add_argument(
        '--out',
        metavar='F',
        help='write the predictions: a .json (COCO, for detection) or .pkl file, or for segmentation a folder of label '
        'PNGs',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw ground truth and prediction, one PNG per image: side by side, or in words for classification',
    )
    parser.add_argument('--show-max', type=int, metavar='N', help='draw the first N images only')
    add_options(
        parser,
        '--trust-checkpoint',
        '--device',
        '--precision',
        '--launcher',
        example='test_dataloader.batch_size=4',
    )
    args = parser.parse_args()
    if args.show_max is not None and (args.show_max < 1 or not args.show_dir):
        parser.error('--show-max is a number from 1, and goes with --show-dir')
    if args.launcher == 'none':  # otherwise the first process reports for all
        require_config(args.config)
        require_paths('checkpoint', args.checkpoint)
    return run('swinv2_mm.engine.launch:evaluate', args)


if __name__ == '__main__':
    sys.exit(main())
