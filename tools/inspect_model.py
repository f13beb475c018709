"""Show parameters and FLOPs of the parts of a model, and pictures of its features, attention and position bias."""

from __future__ import annotations

import argparse
import re
import sys

from swinv2_mm_cli import (
    add_cfg_options,
    add_config,
    add_device,
    add_trust,
    make_parser,
    prepare_process,
    require_paths,
)


def size(text: str) -> tuple[int, int]:
    """Read `HxW`."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH in pixels, e.g. 512x768')
    return int(match[1]), int(match[2])


def point(text: str) -> tuple[int, int]:
    """Read `X,Y`."""
    match = re.fullmatch(r'(-?\d+),(-?\d+)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y in pixels, e.g. 120,80')
    return int(match[1]), int(match[2])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('model', help='config, work directory, checkpoint, or URL of a checkpoint')
    parser.add_argument(
        'image', nargs='?', help='photograph to draw pictures for; not for a config'
    )
    parser.add_argument(
        '--size',
        type=size,
        metavar='HxW',
        help='size of the input that FLOPs are counted for (default: of the image or the test pipeline)',
    )
    parser.add_argument(
        '--point',
        type=point,
        metavar='X,Y',
        help='pixel of the image whose attention and similarity are drawn (default: the centre)',
    )
    parser.add_argument(
        '--out', default='inspection', metavar='D', help='folder of pictures (default: inspection)'
    )
    parser.add_argument('--json', dest='json_file', metavar='F', help='write the table as json')
    add_config(parser)
    add_trust(parser)
    add_device(parser)
    add_cfg_options(parser, 'model.backbone.window_size=16')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    require_paths('image', args.image)
    prepare_process(args.device)
    from swinv2_mm.apis.inspection import inspect_model

    return inspect_model(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
