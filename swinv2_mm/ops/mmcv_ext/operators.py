"""Operators of the mmcv stand-in that run on torch alone. mmcv passes tensors by position and most settings by keyword.

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


# Masked convolution of Guided Anchoring (Wang et al., CVPR 2019): only at the N positions of a mask, for one image,
# without gradients. mmcv multiplies the columns by the weights in Python.


def masked_im2col_forward(
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    output: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy the (Kh, Kw) neighbours of each position, 0 outside of the map, into `output` (C * Kh * Kw, N)."""
    padded = F.pad(image[0], (pad_w, max(kernel_w - 1, pad_w), pad_h, max(kernel_h - 1, pad_h)))
    taps = [torch.arange(size, device=image.device)[:, None] for size in (kernel_h, kernel_w)]
    output.copy_(padded[:, (rows + taps[0])[:, None], (columns + taps[1])[None]].flatten(0, 2))


def masked_col2im_forward(
    values: Tensor, rows: Tensor, columns: Tensor, output: Tensor, **size: int
) -> None:
    """Copy the values (D, N) to their positions in `output` (1, D, Ho, Wo).

    Raises:
        ValueError: a position is outside of the output.
    """
    height, width = output.shape[2:]
    if (rows >= height).any() or (columns >= width).any():
        raise ValueError(
            f'the mask has positions outside of the output of {height} x {width}: padding must be half of the kernel'
        )
    output[0, :, rows, columns] = values.to(output.dtype)
