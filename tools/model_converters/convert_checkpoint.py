"""Convert SwinV2 weights between the layouts of several libraries."""

from __future__ import annotations

import argparse
import sys

from swinv2_mm_cli import add_options, make_parser

LAYOUTS = (
    'native',
    'official',
    'timm-features',
    'timm',
    'hf',
    'torchvision',
    'mmpretrain',
    'native-cr',
    'timm-cr',
    'seed',
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('src', help='file, https://..., timm://NAME, or hf://OWNER/NAME')
    parser.add_argument('dst', help='file to write: .pth or .safetensors')
    parser.add_argument('--to', choices=LAYOUTS, default='native', help='layout (default: native)')
    parser.add_argument('--dry-run', action='store_true', help='report only, write nothing')
    add_options(parser, '--trust-checkpoint')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    from swinv2_mm.checkpoints import trust_checkpoints
    from swinv2_mm.checkpoints.convert import convert_checkpoint

    try:
        with trust_checkpoints(args.trust_checkpoint):
            report = convert_checkpoint(args.src, args.dst, args.to, args.dry_run)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report.table())
    print('nothing written' if args.dry_run else f'written: {args.dst} ({args.to})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
