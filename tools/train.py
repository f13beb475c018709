"""Train the detector, segmentor or classifier of a config."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, make_parser, require_config, run


def main() -> int:
    """Run the tool and return its exit code."""
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
        '--amp',
        nargs='?',
        const='auto',
        choices=['bf16', 'fp16', 'auto'],
        help='mixed precision (default: bf16; fp16 on GPUs without it)',
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
    add_options(
        parser,
        '--trust-checkpoint',
        '--device',
        '--launcher',
        example='train_dataloader.batch_size=4 model.backbone.with_cp=True',
    )
    args = parser.parse_args()
    if args.launcher == 'none':  # otherwise the first process reports for all
        require_config(args.config)
    return run('swinv2_mm.engine.launch:train', args)


if __name__ == '__main__':
    sys.exit(main())
