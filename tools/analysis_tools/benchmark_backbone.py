"""Compare our backbone with the SwinV2 of other libraries; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # `benchmarks`: not part of the package

from benchmarks.cases import MODES
from benchmarks.contestants import BACKBONE_PEERS, CONSTANT, SEQUENTIAL
from benchmarks.tool import add_options, compare_backbones, run_benchmark
from swinv2_mm.ops.execution import BACKENDS


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--peers', nargs='*', choices=list(BACKBONE_PEERS), default=list(BACKBONE_PEERS)
    )
    parser.add_argument('--input', nargs='+', metavar='HxW', help='sizes of the image (512x512)')
    parser.add_argument('--mode', nargs='+', choices=MODES, default=['eval'])
    parser.add_argument(
        '--backends',
        nargs='+',
        choices=(*BACKENDS, SEQUENTIAL, CONSTANT),
        default=['auto'],
        help='ours (auto)',
    )
    parser.add_argument(
        '--compile-peers', action='store_true', help='also measure each peer under torch.compile'
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
    """Run the tool and return its exit code."""
    return run_benchmark(compare_backbones, parse_args())


if __name__ == '__main__':
    sys.exit(main())
