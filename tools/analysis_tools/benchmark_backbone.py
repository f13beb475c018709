"""Measures our backbone beside the SwinV2 of other libraries; docs/benchmarks.md explains the results."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from swinv2_mm.benchmarks.cases import MODES
from swinv2_mm.benchmarks.compare_backbones import compare_backbones
from swinv2_mm.benchmarks.contestants import BACKBONE_PEERS, SEQUENTIAL
from swinv2_mm.benchmarks.options import add_options
from swinv2_mm.benchmarks.report import run_tool
from swinv2_mm.ops.window_attention import available_backends


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--peers', nargs='*', choices=list(BACKBONE_PEERS), default=list(BACKBONE_PEERS)
    )
    parser.add_argument('--input', nargs='+', metavar='HxW', help='sizes of the image (512x512)')
    parser.add_argument('--window', nargs='+', type=int, default=[8], help='windows (8)')
    parser.add_argument('--mode', nargs='+', choices=MODES, default=['eval'])
    parser.add_argument(
        '--backends',
        nargs='+',
        choices=(*available_backends(), SEQUENTIAL),
        default=['auto'],
        help='ours (auto)',
    )
    parser.add_argument(
        '--compile-peers', action='store_true', help='measure each peer under torch.compile, too'
    )
    parser.add_argument(
        '--sweep-resolution', nargs='+', type=int, default=[], metavar='SIDE', help='square images'
    )
    parser.add_argument('--sweep-at-window', type=int, default=8, metavar='N', help='(8)')
    parser.add_argument('--sweep-window', nargs='+', type=int, default=[], metavar='N')
    parser.add_argument('--sweep-at-input', default='512x512', metavar='HxW', help='(512x512)')
    parser.add_argument(
        '--sweep-peers',
        nargs='+',
        choices=list(BACKBONE_PEERS),
        default=[],
        help='peers in sweeps (none)',
    )
    add_options(parser, batch=1)
    return parser.parse_args()


def main() -> int:
    """Runs the tool and returns its exit code."""
    args = parse_args()
    run = partial(compare_backbones, args)
    return run_tool(run, args.json, args.markdown, args.plot, args.from_json)


if __name__ == '__main__':
    sys.exit(main())
