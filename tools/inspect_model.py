"""Show parameters and FLOPs of the parts of a model, and pictures of its features, attention and position bias."""

from __future__ import annotations

import argparse
import re
import sys

from swinv2_mm_cli import add_options, find_config, image_size, make_parser, require_paths, run


def point(text: str) -> tuple[int, int]:
    """Read `X,Y`."""
    match = re.fullmatch(r'(-?\d+),(-?\d+)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y in pixels, e.g. 120,80')
    return int(match[1]), int(match[2])


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument('model', help='config, work directory, checkpoint, or URL of a checkpoint')
    parser.add_argument(
        'image', nargs='?', help='photograph to draw pictures for; not for a config'
    )
    parser.add_argument(
        '--size',
        type=image_size,
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
    add_options(
        parser,
        '--config',
        '--trust-checkpoint',
        '--device',
        example='model.backbone.window_size=16',
    )
    args = parser.parse_args()
    try:
        find_config(args.model)
    except FileNotFoundError:
        require_paths('model', args.model)
    require_paths('image', args.image)
    return run('swinv2_mm.apis.complexity:inspect_model', args)


if __name__ == '__main__':
    sys.exit(main())
