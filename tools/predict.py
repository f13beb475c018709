"""Predict on images, folders, videos or a camera, and write pictures, label maps, json and csv."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, make_parser, require_config, require_paths, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image or video file, folder (searched with its subfolders), pattern, URL, or number of a camera',
    )
    parser.add_argument(
        '--model', required=True, help='work directory, checkpoint, or URL of a checkpoint'
    )
    add_options(parser, '--config')
    parser.add_argument(
        '--out',
        default='predictions',
        metavar='D',
        help='folder for pictures, videos and label PNGs (default: predictions)',
    )
    parser.add_argument('--json', dest='json_file', metavar='F', help='write a COCO json')
    parser.add_argument('--csv', dest='csv_file', metavar='F', help='write a table')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='leave out objects with a lower score (default: 0.3)',
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='N',
        help='predict larger images by overlapping tiles of N x N pixels, e.g. 1024',
    )
    parser.add_argument(
        '--batch', type=int, default=1, metavar='N', help='images or tiles at once (default: 1)'
    )
    parser.add_argument(
        '--no-pictures', dest='pictures', action='store_false', help='write no pictures and videos'
    )
    add_options(
        parser,
        '--trust-checkpoint',
        '--device',
        '--precision',
        example='model.test_cfg.rcnn.nms.iou_threshold=0.6',
    )
    args = parser.parse_args()
    # A number is a camera.
    require_paths('input', *(given for given in args.inputs if not given.isdecimal()))
    require_paths('checkpoint', args.model)
    require_config(args.config)
    return run('swinv2_mm.apis.predict:predict', args)


if __name__ == '__main__':
    sys.exit(main())
