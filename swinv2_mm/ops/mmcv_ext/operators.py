"""Operators of the mmcv stand-in except RoIAlign. mmcv passes tensors by position and most settings by keyword.

torchvision's CPU kernels do not support half precision, and its coordinates are wrong by whole pixels, so all operators
compute in `working_dtype`.

Shape legend: B images, C and D input and output channels, (Kh, Kw) kernel, H W and (Ho, Wo) input and output size,
G deformable groups, N boxes or samples. Boxes are (x1, y1, x2, y2) in pixels; `offset` is 1 where a box covers the
pixels from x1 to x2 inclusive (width x2 - x1 + 1), else 0.
"""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1.1754943508222875e-38  # the smallest normal number of fp32


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float32, or float64 if any of the tensors needs it."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def get_compiler_version() -> str:
    """Return the compiler of mmcv's operators, for environment reports."""
    return 'none (torchvision kernels through swinv2_mm)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version that mmcv's operators were compiled with, for environment reports."""
    return 'not available'


# Deformable convolutions: DCN (Dai et al., ICCV 2017), with a mask DCNv2 (Zhu et al., CVPR 2019). mmcv and torchvision
# differ in the calling convention only: the order of offsets (y before x, deformable groups outermost), the zero
# padding of the map and the layout of weights are the same. mmcv also passes scratch buffers for its kernels.

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
    """Add the gradients of the input and of the offsets to their buffers."""
    input, offset, grad_output, grad_input, grad_offset, weight, *_ = tensors
    grads = _convolution_grads(grad_output, input, weight, offset, None, None, settings)
    grad_input += grads[0]
    grad_offset += grads[2]


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **settings: Any) -> None:
    """Add `scale` times the gradient of the weight to its buffer."""
    input, offset, grad_output, grad_weight, *_ = tensors
    weight = torch.zeros_like(grad_weight)  # only its shape matters
    grads = _convolution_grads(grad_output, input, weight, offset, None, None, settings)
    grad_weight += scale * grads[1]


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


# Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021). mmcv calls the operators for GPU tensors
# only and uses a function in plain torch on the CPU. The stand-in uses that function on all devices.


def ms_deform_attn_forward(*tensors: Tensor, **unused: Any) -> Tensor:
    """Compute the weighted sum of bilinear samples of all levels for each query; see mmcv's function for shapes."""
    value, spatial_shapes, _, sampling_locations, attention_weights = tensors
    dtype = working_dtype(value)
    operands = (value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype))
    return _attend(spatial_shapes, *operands).to(value.dtype)


def ms_deform_attn_backward(*tensors: Tensor, **unused: Any) -> None:
    """Add the gradients of `ms_deform_attn_forward` to their buffers; recompute the forward pass."""
    value, spatial_shapes, _, sampling_locations, attention_weights, grad_output, *buffers = tensors
    dtype = working_dtype(value)
    operands = [
        t.detach().to(dtype).requires_grad_()
        for t in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(spatial_shapes, *operands)
    grads = torch.autograd.grad(output, operands, grad_output.to(dtype))
    for buffer, grad in zip(buffers, grads, strict=True):
        buffer += grad


def _attend(shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Imported here: mmcv's module imports this one.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # A list: a tensor would be read from the GPU once per level and use.
    with torch.autocast(value.device.type, enabled=False):
        return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)


# Sigmoid focal loss (Lin et al., "Focal Loss", ICCV 2017), as used by one-stage heads. `input` are logits (N, C),
# `target` (N,) the class of each sample, C for background, and `weight` a factor per class (C,), or empty.


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the loss of each sample and class into `output`; alpha weighs the sample's class, 1 - alpha others."""
    _, signed, factor = _loss_operands(input, target, weight, alpha)
    loss = -(torch.sigmoid(-signed) ** gamma) * F.logsigmoid(signed)
    output.copy_(loss * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the derivative of each element of `sigmoid_focal_loss_forward` by its logit into `grad_input`."""
    own, signed, factor = _loss_operands(input, target, weight, alpha)
    p, q = torch.sigmoid(signed), torch.sigmoid(-signed)
    slope = q**gamma * (gamma * p * F.logsigmoid(signed) - q)
    grad_input.copy_(torch.where(own, slope, -slope) * factor)


def _loss_operands(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, (N, C) each, the one-hot mask of the targets, logits, negated for other classes, and factors."""
    logits = input.to(working_dtype(input))
    own = target[:, None] == torch.arange(input.size(1), device=input.device)
    factor = torch.full_like(logits, 1 - alpha).masked_fill_(own, alpha)
    if weight.numel():
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return own, torch.where(own, logits, -logits), factor


# mmcv computes the softmax in Python and passes the probabilities.


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the loss of each sample into `output`, 0 for a negative target; `input` are probabilities (N, C)."""
    p, factor = _softmax_operands(input, target, weight, alpha)
    output.copy_(-factor * (1 - p) ** gamma * p.log())


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of each sample's loss by its logits into `grad_input`; `buff` is not used."""
    p, factor = _softmax_operands(input, target, weight, alpha)
    slope = factor * (1 - p) ** gamma * (gamma * p * p.log() / (1 - p).clamp(min=_TINY) - 1)
    own = target[:, None] == torch.arange(input.size(1), device=input.device)
    grad_input.copy_(slope[:, None] * (own.to(p.dtype) - input.to(p.dtype)))


def _softmax_operands(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Return the probability of each sample's class, above 0, and its factor."""
    probabilities = input.to(working_dtype(input))
    index = target.clamp(min=0)
    p = probabilities.gather(1, index[:, None])[:, 0].clamp(min=_TINY)
    factor = torch.full_like(p, alpha).masked_fill_(target < 0, 0)
    return p, factor * weight.to(p.dtype)[index] if weight.numel() else factor


# CARAFE (Wang et al., ICCV 2019): each output pixel is a weighted sum of the neighbours of its input pixel.


def carafe_forward(*tensors: Tensor, **settings: Any) -> None:
    """Compute the upsampled map (B, C, s * H, s * W) into `output`, and keep the features for the backward pass."""
    features, masks, kept, _, _, output = tensors
    kept.copy_(features)
    output.copy_(_reassemble(features, masks, **settings))


def carafe_backward(*tensors: Tensor, **settings: Any) -> None:
    """Compute the gradients of features and masks into their buffers."""
    grad, features, masks, *_, grad_features, grad_masks = tensors
    with torch.enable_grad():
        inputs = tuple(given.detach().requires_grad_() for given in (features, masks))
        out = _reassemble(inputs[0], inputs[1], **settings)
    for buffer, found in zip((grad_features, grad_masks), torch.autograd.grad(out, inputs, grad)):
        buffer.copy_(found)


def _reassemble(features: Tensor, masks: Tensor, **settings: int) -> Tensor:
    """Return the sums of `features` (B, C, H, W) by `masks` (B, groups * kernel_size^2, s * H, s * W)."""
    kernel_size, group_size, scale = (
        settings[key] for key in ('kernel_size', 'group_size', 'scale_factor')
    )
    size = features.shape[2:]
    neighbours = F.unfold(features, kernel_size, padding=kernel_size // 2)
    neighbours = neighbours.unflatten(1, (group_size, -1, kernel_size**2)).unflatten(-1, size)
    weights = masks.unflatten(1, (group_size, kernel_size**2))
    weights = weights.unflatten(-1, (-1, scale)).unflatten(-3, (-1, scale))
    out = torch.einsum('bgckhw,bgkhiwj->bgchiwj', neighbours, weights)
    return out.flatten(5, 6).flatten(3, 4).flatten(1, 2)
