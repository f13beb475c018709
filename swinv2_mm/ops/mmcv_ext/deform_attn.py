"""Multi-scale deformable attention of the mmcv stand-in (Zhu et al., "Deformable DETR", ICLR 2021).

mmcv calls the operators for GPU tensors only and uses a function in plain torch on the CPU. The stand-in uses that
function on all devices.
"""

from typing import Any

import torch
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    **unused: Any,
) -> Tensor:
    """Compute the weighted sum of bilinear samples of all levels for each query; see mmcv's function for shapes."""
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
    **unused: Any,
) -> None:
    """Add the gradients of `ms_deform_attn_forward` to their buffers; recompute the forward pass."""
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
    # Imported here: mmcv's module imports this one.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # A list: a tensor would be read from the GPU once per level and use.
    with torch.autocast(value.device.type, enabled=False):
        return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
