"""Inference on a GPU with all that follows the attention of a block in one kernel.

This runs for `attn_backend='triton'` only. The kernel has been tried on one model of GPU. One block size caused an
illegal memory access there and is not used; the cause is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.drop_path import DropPath
from swinv2_mm.models.layers.linear import Linear
from swinv2_mm.ops.block_tail import TailWeights, block_tail, why_not_fused
from swinv2_mm.ops.exporting import is_exporting

if TYPE_CHECKING:
    from swinv2_mm.models.layers.block import SwinBlock


def runs_tail(block: SwinBlock, x: Tensor) -> bool:
    """Whether `forward_tail` may stand in for projection, MLP, norms and residuals of the block.

    Args:
        block: The block.
        x: Its input.
    """
    if torch.is_grad_enabled() or x.device.type != 'cuda' or block.training:
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    ):
        return False  # the operator has no rule for transforms
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or is_exporting():
        return False
    if block.attn.backend != 'triton' or not _is_plain(block):
        return False
    hidden, channels = cast(nn.Linear, block.mlp[0]).weight.shape
    dtype = x.dtype
    if torch.is_autocast_enabled('cuda'):
        if dtype != torch.float32:
            return False  # norms in fp32 would make the sum one of fp32
        dtype = torch.get_autocast_dtype('cuda')
    return why_not_fused(x.device, dtype, channels, hidden) is None


def _is_plain(block: SwinBlock) -> bool:
    """Whether all layers are what the block was made of, and nothing else computes or waits for their calls."""
    if type(block.attn).forward is not WindowAttention.forward or len(block.mlp) != 5:
        return False
    parts = (*block.mlp, block.attn.proj, block.attn.proj_drop, block.norm1, block.norm2)
    kinds = [Linear, nn.GELU, nn.Dropout, Linear, nn.Dropout, Linear, nn.Dropout]
    kinds += [nn.LayerNorm, nn.LayerNorm]
    if any(type(part) is not kind for part, kind in zip(parts, kinds)):
        return False
    fc1, act, _, fc2, _, proj, _, *norms = cast(Any, parts)
    channels, hidden = proj.in_features, fc1.out_features
    tensors = [
        tensor for layer in (fc1, fc2, proj, *norms) for tensor in (layer.weight, layer.bias)
    ]
    return (
        act.approximate == 'none'
        and type(block.drop_path) is DropPath
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and len({tensor.device for tensor in tensors}) == 1
        and proj.weight.shape == (channels, channels)
        and fc1.weight.shape == (hidden, channels)
        and fc2.weight.shape == (channels, hidden)
        and all(norm.normalized_shape == (channels,) for norm in norms)
        and not nn.modules.module._has_any_global_hook()
        and not any(
            part.training
            or part._forward_hooks
            or part._forward_pre_hooks
            or 'forward' in part.__dict__
            for part in block.modules()
            if part is not block
        )
    )


def forward_tail(block: SwinBlock, x: Tensor, attended: Tensor) -> Tensor:
    """From the input of the block and the output of its attention to the output of the block, `(B, H, W, C)` each."""
    layers = block.attn.proj, block.norm1, block.mlp[0], block.mlp[3], block.norm2
    tensors = [cast(Tensor, part) for layer in layers for part in (layer.weight, layer.bias)]
    weights = TailWeights(*tensors)
    return block_tail(x, attended, weights, (block.norm1.eps, block.norm2.eps))
