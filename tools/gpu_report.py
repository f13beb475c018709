"""Measure everything on a GPU: tests, kernels, backbones, detectors, a short training. docs/gpu.md explains it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from swinv2_mm.benchmarks.gpu.part import PARTS
from swinv2_mm.benchmarks.gpu.report import run_report
from swinv2_mm.benchmarks.gpu.tables import show_tables


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--parts', nargs='+', choices=list(PARTS), default=list(PARTS))
    parser.add_argument('--minutes', type=float, default=9, help='time for all parts (9)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu'), metavar='DIR')
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1, ... or cpu (cuda)')
    parser.add_argument('--quick', action='store_true', help='tiny sizes: try the report itself')
    parser.add_argument(
        '--tables', type=Path, metavar='DIR', help='measure nothing: print the tables of an --out'
    )
    parser.add_argument(
        '--docs', type=Path, metavar='FILE', help='with --tables: write them into this page as well'
    )
    args = parser.parse_args()
    if args.docs and not args.tables:
        parser.error('--docs needs --tables')
    return args


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    return run_report(args) if args.tables is None else show_tables(args.tables, args.docs)


if __name__ == '__main__':
    sys.exit(main())
