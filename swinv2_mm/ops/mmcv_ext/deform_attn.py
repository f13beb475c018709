"""Multi-scale deformable attention of the mmcv stand-in (Zhu et al., "Deformable DETR", ICLR 2021).

mmcv calls the operators for GPU tensors only and has the same function in plain torch for the CPU; the stand-in
runs that one everywhere.

Shape legend: B images, L levels of (H_l, W_l) pixels, S their sum, Q queries, nH heads, D channels of a head,
P points per level.
"""

import torch
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum bilinear samples of all levels, weighted per query.

    Args:
        value: (B, S, nH, D) features of all levels, one after the other.
        spatial_shapes: (L, 2) heights and widths of the levels.
        level_start_index: (L,) where each level begins in S; follows from `spatial_shapes`.
        sampling_locations: (B, Q, nH, L, P, 2) x and y, from 0 to 1 over the map.
        attention_weights: (B, Q, nH, L, P).
        im2col_step: images per call of mmcv's kernel; has no effect on the result.

    Returns:
        (B, Q, nH * D) sums, in the format of `value`.
    """
    dtype = working_dtype(value)
    operands = (value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype))
    return _attend(spatial_shapes, *operands).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add the gradients of `ms_deform_attn_forward` to their buffers. Runs the forward pass once more."""
    dtype = working_dtype(value)
    operands = [
        t.detach().to(dtype).requires_grad_()
        for t in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _attend(spatial_shapes, *operands)
    grads = torch.autograd.grad(output, operands, grad_output.to(dtype))
    for buffer, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        buffer += grad


def _attend(shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Imported here: mmcv's module asks for this one while it is itself being imported.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # Numbers instead of a tensor: it would be read back from the GPU once per level and use.
    with torch.autocast(value.device.type, enabled=False):
        return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
