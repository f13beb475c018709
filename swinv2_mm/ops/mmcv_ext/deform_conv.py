"""Deformable convolutions of the mmcv stand-in, on torchvision's kernels; for the shapes, see `operators`.

DCN (Dai et al., ICCV 2017), with a mask DCNv2 (Zhu et al., CVPR 2019). mmcv and torchvision differ in the calling
convention only: the order of offsets (y before x, deformable groups outermost), the zero padding of the map and the
layout of weights are the same. mmcv also passes scratch buffers for its kernels.
"""

from typing import Any

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.operators import working_dtype

# mmcv's names of the integer arguments of torchvision's kernels, in order.
_DCN = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
_DCN_V2 = (
    *('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w'),
    *('group', 'deformable_group'),
)


def deform_conv_forward(*tensors: Tensor, **settings: Any) -> None:
    """Compute the convolution of `input` (B, C, H, W) with `offset` (B, 2 * G * Kh * Kw, Ho, Wo) into `output`."""
    input, weight, offset, output, *_ = tensors
    output.copy_(_convolve(input, weight, offset, None, None, settings))


def deform_conv_backward_input(*tensors: Tensor, **settings: Any) -> None:
    """Add the gradients of the input and of the offsets to their buffers.

    torchvision computes all gradients at once: that of the weight waits in the scratch buffer for mmcv's next call.
    """
    input, offset, grad_output, grad_input, grad_offset, weight, scratch = tensors
    grads = _convolution_grads(grad_output, input, weight, offset, None, None, settings)
    grad_input += grads[0]
    grad_offset += grads[2]
    scratch.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **settings: Any) -> None:
    """Add `scale` times the gradient of the weight to its buffer."""
    input, offset, grad_output, grad_weight, scratch, _ = tensors
    if scratch.shape != grad_weight.shape:  # input and offsets take no gradient
        weight = torch.zeros_like(grad_weight)  # only its shape matters
        scratch = _convolution_grads(grad_output, input, weight, offset, None, None, settings)[1]
    grad_weight += scale * scratch


def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **settings: Any) -> None:
    """Like `deform_conv_forward`, with a factor per sample, `mask` (B, G * Kh * Kw, Ho, Wo), and a bias (D,)."""
    input, weight, bias, _, offset, mask, output, _ = tensors
    given = bias if with_bias else None
    offset, mask = _of_size(offset, output), _of_size(mask, output)
    output.copy_(_convolve(input, weight, offset, mask, given, settings))


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **settings: Any) -> None:
    """Add all gradients of `modulated_deform_conv_forward` to their buffers."""
    input, weight, _, _, offset, mask, _, *buffers, grad_output = tensors
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask = buffers
    offset, mask, grad_offset, grad_mask = (
        _of_size(tensor, grad_output) for tensor in (offset, mask, grad_offset, grad_mask)
    )
    grads = _convolution_grads(grad_output, input, weight, offset, mask, None, settings)
    buffers = [grad_input, grad_weight, grad_offset, grad_mask, grad_bias]
    for buffer, grad in zip(buffers[: 5 if with_bias else 4], grads):
        buffer += grad


def _of_size(samples: Tensor, output: Tensor) -> Tensor:
    """Return a view of offsets or a mask with height and width of `output`.

    mmcv reads those of a larger map as if they were written for the output, which DyHead relies on.
    """
    size = output.shape[2:]
    used = samples.size(1) * size.numel()
    if samples.shape[2:] == size or samples[0].numel() < used:
        return samples
    return samples.flatten(1)[:, :used].unflatten(1, (-1, *size))


def _convolve(*arguments: Any) -> Tensor:
    return torch.ops.torchvision.deform_conv2d(*_operands(*arguments))


def _convolution_grads(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the input, the weight, the offsets, the mask and the bias."""
    operands = _operands(*arguments)
    grads = torch.ops.torchvision._deform_conv2d_backward(grad.to(operands[0].dtype), *operands)
    image, weight, offset = operands[:3]
    outside = _is_outside(image, weight, offset, operands[5:11])
    return (*grads[:2], grads[2].masked_fill(outside, 0), *grads[3:])


def _is_outside(image: Tensor, weight: Tensor, offset: Tensor, geometry: tuple[int, ...]) -> Tensor:
    """Return which offsets move a sample so far that it touches no pixel; mmcv's gradient is 0 there.

    On the very edge of that, torchvision's is not: a new layer has many samples there.
    """
    outside = offset.new_zeros((), dtype=torch.bool)
    for axis, of_axis in enumerate((offset[:, ::2], offset[:, 1::2])):
        stride, padding, dilation = geometry[axis::2]
        kernel, sizes = weight.shape[2:], of_axis.shape[2:]
        taps = torch.arange(kernel[axis], device=offset.device) * dilation - padding
        taps = (taps[:, None] if axis == 0 else taps[None]).expand(kernel).reshape(-1, 1, 1)
        starts = torch.arange(sizes[axis], device=offset.device) * stride
        base = taps + (starts[:, None] if axis == 0 else starts[None])
        at = of_axis.unflatten(1, (-1, kernel.numel())) + base
        outside = outside | (at <= -1) | (at >= image.size(2 + axis))
    return outside.unsqueeze(3).expand(-1, -1, -1, 2, -1, -1).reshape(offset.shape)


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
