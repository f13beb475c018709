"""Measures a training step with our backbone beside others in one config; docs/benchmarks.md explains the results."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from swinv2_mm.benchmarks.compare_training import compare_training
from swinv2_mm.benchmarks.contestants import TRAINING_PEERS
from swinv2_mm.benchmarks.options import add_options
from swinv2_mm.benchmarks.report import run_tool
from swinv2_mm.ops.window_attention import available_backends

TASKS = ('mask_rcnn', 'upernet')


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument(
        '--peers',
        nargs='*',
        choices=list(TRAINING_PEERS),
        default=list(TRAINING_PEERS),
        help="mmpretrain's SwinV2, and the Swin V1 of mmdet or mmseg",
    )
    parser.add_argument('--input', nargs='+', metavar='HxW', default=['512x512'])
    parser.add_argument('--window', nargs='+', type=int, default=[8], help='windows (8)')
    parser.add_argument(
        '--backends', nargs='+', choices=available_backends(), default=['auto'], help='ours (auto)'
    )
    add_options(parser, batch=2)
    return parser.parse_args()


def main() -> int:
    """Runs the tool and returns its exit code."""
    args = parse_args()
    run = partial(compare_training, args)
    return run_tool(run, args.json, args.markdown, args.plot, args.from_json)


if __name__ == '__main__':
    sys.exit(main())
