"""Export a trained model to ONNX, OpenVINO, TorchScript or torch.export, and check the file against PyTorch."""

from __future__ import annotations

import sys

from swinv2_mm_cli import add_options, image_size, make_parser, require_config, require_paths, run


def main() -> int:
    """Run the tool and return its exit code."""
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
    sizes.add_argument('--size', type=image_size, metavar='HxW', help='images of one size only')
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
    add_options(
        parser, '--config', '--trust-checkpoint', example='model.test_cfg.rcnn.score_thr=0.3'
    )
    args = parser.parse_args()
    require_paths('checkpoint', args.model)
    require_config(args.config)
    return run('swinv2_mm.apis.export:export_model', args)


if __name__ == '__main__':
    sys.exit(main())
