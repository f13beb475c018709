"""Remove everything but the weights from a training checkpoint and add their hash to the file name."""

from __future__ import annotations

import argparse
import sys

from swinv2_mm_cli import add_options, make_parser


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('src', help='checkpoint of a training run')
    parser.add_argument(
        'dst', help='file to write: model.safetensors becomes model-1a2b3c4d.safetensors'
    )
    add_options(parser, '--trust-checkpoint')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    from swinv2_mm.checkpoints import trust_checkpoints
    from swinv2_mm.checkpoints.convert import publish_checkpoint

    try:
        with trust_checkpoints(args.trust_checkpoint):
            print(publish_checkpoint(args.src, args.dst))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
