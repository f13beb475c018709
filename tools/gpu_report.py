"""Measure everything on a GPU: tests, kernels, backbones, detectors, a short training. See docs/gpu.md.

Exit codes: 0 if everything was measured and all tests passed, 1 if not, 2 for invalid inputs, 130 or 143 if
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

# `benchmarks` is part of the checkout, not of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NEEDED = (
    *('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
    *('cv2', 'scipy', 'matplotlib', 'skimage', 'pycocotools', 'pytest', 'hypothesis'),
)


def main() -> int:
    """Run the tool and return its exit code."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f'{sys.executable} lacks {", ".join(missing)}: take an environment that has them, such as the one that '
            '`make test` creates, or see "A machine without network" in docs/gpu.md',
            file=sys.stderr,
        )
        return 2
    from benchmarks.gpu.part import PARTS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--parts', nargs='+', choices=list(PARTS), default=list(PARTS), help='what to run (all)'
    )
    parser.add_argument('--minutes', type=float, default=9, help='time for all parts (9)')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/gpu'),
        metavar='DIR',
        help='folder for the results (work_dirs/gpu)',
    )
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1, ... or cpu (cuda)')
    parser.add_argument(
        '--quick', action='store_true', help='use tiny sizes, to test the report itself'
    )
    parser.add_argument(
        '--tables', type=Path, metavar='DIR', help='measure nothing: print the tables of an --out'
    )
    parser.add_argument(
        '--docs', type=Path, metavar='FILE', help='with --tables: write them into this page as well'
    )
    args = parser.parse_args()
    if args.docs and not args.tables:
        parser.error('--docs needs --tables')
    from benchmarks.gpu.report import run_report, show_tables
    from benchmarks.tool import run_tool

    if args.tables is None:
        return run_tool(lambda: run_report(args))
    return run_tool(lambda: show_tables(args.tables, args.docs))


if __name__ == '__main__':
    sys.exit(main())
