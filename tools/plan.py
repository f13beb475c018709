"""Plan the memory of a training: what it needs on a GPU, and the largest batch that fits."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, image_size, make_parser, require_config, run


def main() -> int:
    """Run the tool and return its exit code."""
    parser = make_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--gpus', type=int, default=1, metavar='N', help='number of GPUs (default: 1)'
    )
    parser.add_argument(
        '--precision',
        choices=['fp32', 'bf16', 'fp16'],
        help='bf16 and fp16: a training with --amp (default: that of the config)',
    )
    parser.add_argument(
        '--strategy',
        choices=['ddp', 'fsdp', 'none'],
        help='how several GPUs share the work (default: fsdp if the config says so, else ddp)',
    )
    parser.add_argument(
        '--batch',
        type=int,
        metavar='B',
        help='images per GPU (default: train_dataloader.batch_size of the config)',
    )
    parser.add_argument(
        '--size',
        type=image_size,
        metavar='HxW',
        help='size of the images (default: the largest of the training pipeline)',
    )
    add_options(parser, example='model.backbone.with_cp=True')
    args = parser.parse_args()
    require_config(args.config)
    return run('swinv2_mm.apis.plan:plan', args)


if __name__ == '__main__':
    sys.exit(main())
