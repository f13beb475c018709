"""Evaluate a checkpoint of a detector, segmentor or classifier."""

from __future__ import annotations

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help='checkpoint file, or a work directory for its newest one'
    )
    parser.add_argument(
        '--work-dir', help='folder for the log and metrics.json (default: work_dirs/<config>)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--out',
        metavar='F',
        help='write the predictions: a .pkl file, or for segmentation a folder of label PNGs',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw ground truth and prediction, one PNG per image: side by side, or in words for classification',
    )
    parser.add_argument('--show-max', type=int, metavar='N', help='draw the first N images only')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='accept the checkpoint as it is, with code to run or NaN weights: only for files that you trust',
    )
    parser.add_argument(
        '--device',
        default='auto',
        metavar='DEV',
        help='cpu, cuda, cuda:1, mps, ...; auto: an accelerator if there is one (default: auto)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; dist_test.sh and slurm_test.sh set it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override the config, e.g. test_dataloader.batch_size=4',
    )
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    # Threads that wait by spinning for long are several times slower as soon as they share their cores with other
    # work; threads that sleep at once lose a fifth on idle cores. A short spin is good at both.
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '20000')
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # hide GPUs before torch looks for them
    from swinv2_mm.engine.launch import evaluate

    return evaluate(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
