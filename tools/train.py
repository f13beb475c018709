"""Train the detector, segmentor or classifier of a config."""

from __future__ import annotations

import argparse
import sys

from swinv2_mm_cli import (
    add_cfg_options,
    add_device,
    add_launcher,
    add_trust,
    make_parser,
    prepare_process,
    require_config,
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
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
    add_trust(parser)
    add_device(parser)
    add_launcher(parser)
    add_cfg_options(parser, 'train_dataloader.batch_size=4 model.backbone.with_cp=True')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    if args.launcher == 'none':  # otherwise the first process reports for all
        require_config(args.config)
    prepare_process(args.device)
    from swinv2_mm.engine.launch import train

    return train(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
