"""Compare detectors and segmentors with our backbone and others in one config; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # `benchmarks`: not part of the package

from benchmarks.cases import MODES
from benchmarks.contestants import MODEL_PEERS
from benchmarks.tool import add_options, compare_models, run_benchmark
from swinv2_mm.ops.execution import BACKENDS

TASKS = ('mask_rcnn', 'upernet', 'semantic_fpn')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument(
        '--peers',
        nargs='*',
        choices=list(MODEL_PEERS),
        default=list(MODEL_PEERS),
        help="mmpretrain's SwinV2, and the Swin V1 of mmdet or mmseg",
    )
    parser.add_argument('--input', nargs='+', metavar='HxW', default=['512x512'])
    parser.add_argument('--mode', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument(
        '--backends', nargs='+', choices=BACKENDS, default=['auto'], help='ours (auto)'
    )
    add_options(parser, batch=2)
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    return run_benchmark(compare_models, parse_args())


if __name__ == '__main__':
    sys.exit(main())
