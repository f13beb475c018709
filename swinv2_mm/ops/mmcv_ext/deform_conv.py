"""Deformable convolutions of the mmcv stand-in, on torchvision's kernels.

Without `mask` they are DCN (Dai et al., ICCV 2017), with it DCNv2 (Zhu et al., CVPR 2019). mmcv and torchvision
agree on everything but the calling convention: the order of offsets (y before x, deformable groups outermost),
zero padding around the map, and the layout of weights.

Shape legend: B images, C and D input and output channels, (Kh, Kw) kernel, H W and (Ho, Wo) input and output
size, G deformable groups. `columns` and `ones` are scratch buffers of mmcv's kernels and stay unused.
"""

from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


class _Geometry(NamedTuple):
    """The integer arguments of torchvision's kernels, in their order."""

    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    deform_groups: int


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution of `input` (B, C, H, W) with `offset` (B, 2 * G * Kh * Kw, Ho, Wo) into `output`."""
    geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add the gradients of the input and of the offsets to their buffers."""
    geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _gradients(grad_output, input, weight, offset, None, None, geometry)
    grad_input += grads.input
    grad_offset += grads.offset


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient of the weight to its buffer."""
    geometry = _Geometry(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    # The gradient of the weight does not depend on the weight: its buffer gives the shape.
    grads = _gradients(
        grad_output, input, torch.zeros_like(grad_weight), offset, None, None, geometry
    )
    grad_weight += scale * grads.weight


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """As `deform_conv_forward`, with a factor per sample, `mask` (B, G * Kh * Kw, Ho, Wo), and a bias (D,)."""
    geometry = _Geometry(
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group
    )
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, geometry))


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
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add all gradients of `modulated_deform_conv_forward` to their buffers."""
    geometry = _Geometry(
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group
    )
    grads = _gradients(
        grad_output, input, weight, offset, mask, bias if with_bias else None, geometry
    )
    grad_input += grads.input
    grad_weight += grads.weight
    grad_offset += grads.offset
    grad_mask += grads.mask
    if with_bias:
        grad_bias += grads.bias


class _Gradients(NamedTuple):
    """What torchvision's backward kernel returns, in its order."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


def _convolve(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: _Geometry,
) -> Tensor:
    operands = _operands(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*operands, *geometry, mask is not None)


def _gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: _Geometry,
) -> _Gradients:
    operands = _operands(input, weight, offset, mask, bias)
    grad = grad.to(operands[0].dtype)
    return _Gradients(
        *torch.ops.torchvision._deform_conv2d_backward(grad, *operands, *geometry, mask is not None)
    )


def _operands(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tensor arguments of torchvision's kernels, all of one format; what is absent is a placeholder."""
    dtype = working_dtype(input, weight, offset)
    if mask is None:
        mask = input.new_zeros((input.size(0), 1))
    if bias is None:
        bias = weight.new_zeros(weight.size(0))
    return input.to(dtype), weight.to(dtype), offset.to(dtype), mask.to(dtype), bias.to(dtype)
