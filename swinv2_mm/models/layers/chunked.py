"""Inference of a whole block on a few rows of windows at a time, so that what lies between two maps stays in the cache.

Norms, residuals and MLPs treat each token alone, so windows are independent of one another through a whole block.
Beside speed this bounds memory: of what a block computes, only one chunk exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from swinv2_mm.ops.linear import linear
from swinv2_mm.ops.norm import add_norm
from swinv2_mm.ops.window_attention import WindowPartition, choose_backend
from swinv2_mm.ops.window_attention.fused import attend_tiles, crop_table
from swinv2_mm.ops.window_attention.llvm_backend import attend, lay_out_table
from swinv2_mm.ops.window_attention.partition import Band
from swinv2_mm.ops.window_attention.reference import expand_bias

if TYPE_CHECKING:
    from swinv2_mm.models.layers.attention import WindowAttention
    from swinv2_mm.models.layers.block import SwinBlock

# Numbers in a chunk of the map, tokens times channels, where windows are not larger. From half to twice of it hardly
# matters; below, matrix products get too small.
CHUNK_NUMBERS = 8192 * 96


def is_unwatched(module: nn.Module, x: Tensor) -> bool:
    """Whether only what the module gives counts, not how: inference on a CPU without compiler, tracer or hooks."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not nn.modules.module._has_any_global_hook()
        and not any(
            part.training or part._forward_hooks or part._forward_pre_hooks
            for part in module.modules()
        )
    )


def runs_chunked(block: SwinBlock, x: Tensor) -> bool:
    """Whether `forward_chunked` may stand in for the block."""
    return (
        block.windows_are_independent
        and block.attn.backend in ('auto', 'fused', 'llvm')
        and is_unwatched(block, x)
    )


def in_bands(
    module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, axis: int, rows: int
) -> Tensor:
    """Run a module that makes one row of tokens of `rows` rows of its input, a few rows at a time if it is unwatched.

    Args:
        module: Whose `forward` it is.
        forward: To `(B, H, W, C)`.
        x: Its input.
        axis: That of the rows in `x`.
        rows: Rows of the input for one of the output.

    Returns:
        `forward(x)`.
    """
    step = max(1, CHUNK_NUMBERS * x.shape[axis] // max(1, x.numel() * rows)) * rows
    if step >= x.shape[axis] or not is_unwatched(module, x):
        return forward(x)
    parts = x.split(step, dim=axis)
    first = forward(parts[0])
    out = first.new_empty(len(first), -(-x.shape[axis] // rows), *first.shape[2:])
    places = out.split(step // rows, dim=1)
    places[0].copy_(first)
    for place, part in zip(places[1:], parts[1:]):
        place.copy_(forward(part))
    return out


def _attention(
    attn: WindowAttention, partition: WindowPartition
) -> Callable[[Tensor, Band], Tensor]:
    """From queries, keys and values of a band, `(B, H, W, 3 * C)`, to what its windows attend to, `(B, H, W, C)`."""
    window, scale = partition.window, attn.scale()

    @cache
    def bias_of(part: tuple[int, int]) -> Tensor:
        return attn.remembered_bias(
            window, part, lambda table: expand_bias(crop_table(table, part)).contiguous()
        )

    def run(qkv: Tensor, band: Band) -> Tensor:
        head_dim = qkv.shape[3] // (3 * attn.num_heads)
        backend = choose_backend(attn.backend, qkv.device, head_dim=head_dim, dtype=qkv.dtype)
        with torch.autocast('cpu', enabled=False):
            if backend == 'llvm':
                table = attn.remembered_bias(window, backend, lay_out_table)
                return attend(qkv, scale.float(), table, window, band.runs)
            exact = torch.promote_types(qkv.dtype, torch.float32)
            return attend_tiles(
                band.tiles,
                qkv,
                scale.to(exact),
                lambda part: bias_of(part).to(exact),
                attn.sequential,
            )

    return run


def forward_chunked(
    block: SwinBlock, x: Tensor, partition: WindowPartition, overwrite: bool = False
) -> Tensor:
    """Map `(B, H, W, C)` to the same shape, as the block does.

    Args:
        block: In eval mode.
        x: Its input.
        partition: How its attention cuts the map.
        overwrite: Whether the result takes the place of the input: each band needs but its own part of it.
    """
    attn, out = block.attn, x if overwrite else torch.empty_like(x)
    qkv_bias, attention = attn.qkv_bias(), _attention(attn, partition)
    for band in partition.bands(len(x), CHUNK_NUMBERS // x.shape[3]):
        place = (band.images, band.rows)
        tokens = attention(linear(x[place], attn.qkv.weight, qkv_bias), band)
        tokens = add_norm(x[place], attn.proj(tokens), block.norm1)
        add_norm(tokens, block.mlp(tokens), block.norm2, out=out[place])
        if block.norm3 is not None:
            out[place] = block.norm3(out[place])
    return out
