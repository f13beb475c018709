"""Deformable convolutions of the mmcv stand-in, on torchvision's kernels.

Without `mask` they are DCN (Dai et al., ICCV 2017), with it DCNv2 (Zhu et al., CVPR 2019). mmcv and torchvision
differ in the calling convention only: the order of offsets (y before x, deformable groups outermost), the zero padding
of the map and the layout of weights are the same. mmcv passes strides, paddings and similar arguments by keyword, and
scratch buffers for its kernels, which are not used.

Shape legend: B images, C and D input and output channels, (Kh, Kw) kernel, H W and (Ho, Wo) input and output
size, G deformable groups.
"""

from typing import Any

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype

# mmcv's names of the integer arguments of torchvision's kernels, in order.
_DCN = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_DCN_V2 = (
    *('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w'),
    *('group', 'deformable_group'),
)


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *scratch: Tensor, **settings: Any
) -> None:
    """Compute the convolution of `input` (B, C, H, W) with `offset` (B, 2 * G * Kh * Kw, Ho, Wo) into `output`."""
    output.copy_(_forward(input, weight, offset, None, None, settings))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *scratch: Tensor,
    **settings: Any,
) -> None:
    """Add the gradients of the input and of the offsets to their buffers."""
    grads = _backward(grad_output, input, weight, offset, None, None, settings)
    grad_input += grads[0]
    grad_offset += grads[2]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: Any,
) -> None:
    """Add `scale` times the gradient of the weight to its buffer."""
    weight = torch.zeros_like(grad_weight)  # only its shape matters
    grad_weight += scale * _backward(grad_output, input, weight, offset, None, None, settings)[1]


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **settings: Any,
) -> None:
    """Like `deform_conv_forward`, with a factor per sample, `mask` (B, G * Kh * Kw, Ho, Wo), and a bias (D,)."""
    output.copy_(_forward(input, weight, offset, mask, bias if with_bias else None, settings))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **settings: Any,
) -> None:
    """Add all gradients of `modulated_deform_conv_forward` to their buffers."""
    grads = _backward(grad_output, input, weight, offset, mask, None, settings)
    buffers = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for buffer, grad in zip(buffers[: 5 if with_bias else 4], grads):
        buffer += grad


def _forward(*arguments: Any) -> Tensor:
    return torch.ops.torchvision.deform_conv2d(*_operands(*arguments))


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the input, the weight, the offsets, the mask and the bias."""
    operands = _operands(*arguments)
    return torch.ops.torchvision._deform_conv2d_backward(grad.to(operands[0].dtype), *operands)


def _operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    settings: dict[str, int],
) -> tuple[Any, ...]:
    """Return the arguments of torchvision's kernels, tensors in one dtype, with placeholders for missing ones."""
    dtype = working_dtype(input, weight, offset)
    tensors = (
        input,
        weight,
        offset,
        input.new_zeros((input.size(0), 1)) if mask is None else mask,
        weight.new_zeros(weight.size(0)) if bias is None else bias,
    )
    names = _DCN if mask is None else _DCN_V2
    geometry = (settings[name] for name in names)
    return (*(tensor.to(dtype) for tensor in tensors), *geometry, mask is not None)
