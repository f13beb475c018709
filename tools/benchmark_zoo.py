"""Train configs with several seeds, and write one table and one figure of their results; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # `benchmarks`: not part of the package

from benchmarks.zoo import compare
from swinv2_mm.engine.launch import guarded

_TRAIN = f'{sys.executable} {Path(__file__).with_name("train.py")} {{config}}'


def main() -> int:
    """Run the tool and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', help='config files or names; one row each')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--max-iters', type=int, metavar='N', help='iterations of each training')
    parser.add_argument(
        '--out', default='work_dirs/zoo', metavar='D', help='folder (default: work_dirs/zoo)'
    )
    parser.add_argument(
        '--command',
        default=_TRAIN,
        metavar='C',
        help='how a training starts; {config}, {name} and {work_dir} are replaced, options are appended, e.g. '
        '"bash tools/dist_train.sh {config} 8" or "bash tools/slurm_train.sh gpu {name} {config} {work_dir}"',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for all trainings'
    )
    return guarded(lambda: compare(**vars(parser.parse_args())))


if __name__ == '__main__':
    sys.exit(main())
