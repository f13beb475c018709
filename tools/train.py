"""Train the detector, segmentor or classifier of a config."""

from __future__ import annotations

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for checkpoints, logs and metrics.json (default: work_dirs/<config>)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from CKPT, or from the newest checkpoint of the work directory',
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: fp16 on a GPU, bfloat16 elsewhere'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by effective batch size / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--max-iters', type=int, metavar='N', help='run exactly N iterations, then validate once'
    )
    parser.add_argument(
        '--no-pretrained',
        action='store_true',
        help='start from scratch where the config starts from pre-trained weights',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='accept checkpoints as they are, with code to run or NaN weights: only for files that you trust',
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
        help='how the processes were started; dist_train.sh and slurm_train.sh set it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override the config, e.g. train_dataloader.batch_size=4 model.backbone.with_cp=True',
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
    from swinv2_mm.engine.launch import train

    return train(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
