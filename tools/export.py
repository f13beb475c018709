"""Export a trained model to ONNX, OpenVINO, TorchScript or torch.export, and check the file against PyTorch."""

from __future__ import annotations

import argparse
import re
import sys

from swinv2_mm_cli import (
    add_cfg_options,
    add_config,
    add_trust,
    make_parser,
    prepare_process,
    require_config,
    require_paths,
)


def size(text: str) -> tuple[int, int]:
    """Read `HxW`."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH in pixels, e.g. 512x768')
    return int(match[1]), int(match[2])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument('model', help='work directory or checkpoint file')
    parser.add_argument(
        '--to', choices=['onnx', 'openvino', 'torchscript', 'torch'], required=True, help='format'
    )
    parser.add_argument(
        '--part',
        choices=['model', 'backbone'],
        default='model',
        help='the whole model, or the feature maps of its backbone (default: model)',
    )
    parser.add_argument(
        '--precision',
        choices=['fp32', 'fp16', 'bf16', 'int8'],
        default='fp32',
        help='of the weights (default: fp32); int8 is calibrated and measured on the validation set',
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--size', type=size, metavar='HxW', help='images of one size only')
    sizes.add_argument(
        '--dynamic',
        dest='size',
        action='store_const',
        const=None,
        help='images and batches of any size (default)',
    )
    parser.add_argument('--out', metavar='F', help='the file (default: beside the checkpoint)')
    parser.add_argument(
        '--evaluate', action='store_true', help='measure the validation set before and after'
    )
    add_config(parser)
    add_trust(parser)
    add_cfg_options(parser, 'model.test_cfg.rcnn.score_thr=0.3')
    return parser.parse_args()


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    require_paths('checkpoint', args.model)
    require_config(args.config)
    prepare_process('cpu')  # exporters and checks run on the CPU
    from swinv2_mm.apis.export import export_model

    return export_model(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
