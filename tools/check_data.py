"""Check the annotations, images and labels that a config names, without training."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, make_parser, require_config, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__, 'Exit code 0, or 2 if training would suffer.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val', 'test'],
        help='parts to check (default: all)',
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        '--sample',
        type=int,
        default=1000,
        metavar='N',
        help='images and label files of each part to read, spread over it (default: 1000)',
    )
    amount.add_argument(
        '--all', dest='sample', action='store_const', const=None, help='read all of them'
    )
    parser.add_argument(
        '--json', dest='json_file', metavar='F', help='write findings with all files and ids to F'
    )
    parser.add_argument(
        '--show-dir', metavar='D', help='draw samples of each part with their annotations into D'
    )
    add_options(parser, example='data_root=data/mine/')
    args = parser.parse_args()
    require_config(args.config)
    return run('swinv2_mm.apis.data_report:report', args)


if __name__ == '__main__':
    sys.exit(main())
