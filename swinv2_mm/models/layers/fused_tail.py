"""Inference on a GPU with all that follows the attention of a block in one kernel.

Only for `attn_backend='triton'`: the kernel has been seen on one model of GPU so far, and with one of the block sizes
tried there it read where it must not. The sizes that are left ran without fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

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
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or is_exporting():
        return False
    if block.attn.backend != 'triton' or not _is_plain(block):
        return False
    hidden, channels = cast(nn.Linear, block.mlp[0]).weight.shape
    dtype = x.dtype
    if torch.is_autocast_enabled('cuda'):
        dtype = torch.get_autocast_dtype('cuda')
    return why_not_fused(x.device, dtype, channels, hidden) is None


def _is_plain(block: SwinBlock) -> bool:
    """Whether all layers are what the block was made of, and nothing waits for their calls."""
    norms = (block.norm1, block.norm2)
    linears = (block.attn.proj, block.mlp[0], block.mlp[3])
    return (
        all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and all(type(linear) is Linear and linear.bias is not None for linear in linears)
        and type(block.mlp[1]) is nn.GELU
        and block.mlp[1].approximate == 'none'
        and type(block.drop_path) is DropPath
        and not nn.modules.module._has_any_global_hook()
        and not any(
            part.training or part._forward_hooks or part._forward_pre_hooks
            for part in block.modules()
        )
    )


def forward_tail(block: SwinBlock, x: Tensor, attended: Tensor) -> Tensor:
    """From the input of the block and the output of its attention to the output of the block, `(B, H, W, C)` each."""
    layers = block.attn.proj, block.norm1, block.mlp[0], block.mlp[3], block.norm2
    tensors = [cast(Tensor, part) for layer in layers for part in (layer.weight, layer.bias)]
    weights = TailWeights(*tensors)
    return block_tail(x, attended, weights, (block.norm1.eps, block.norm2.eps))
