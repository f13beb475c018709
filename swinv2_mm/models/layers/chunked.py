"""Inference of a whole block on a few rows of windows at a time, so that what lies between two maps stays in the cache.

Norms, residuals and MLPs treat each token alone, so windows are independent of one another through a whole block.
Beside speed this bounds memory: of what a block computes, only one chunk exists at a time.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swinv2_mm.ops.linear import linear
from swinv2_mm.ops.window_attention import WindowPartition, choose_backend
from swinv2_mm.ops.window_attention.fused import attend_tile, unit_factors

if TYPE_CHECKING:
    from swinv2_mm.models.layers.block import SwinBlock

# Numbers in a chunk of the map, tokens times channels, where windows are not larger. From half to twice of it hardly
# matters; below, matrix products get too small.
CHUNK_NUMBERS = 8192 * 96


def runs_chunked(block: SwinBlock, x: Tensor) -> bool:
    """Whether `forward_chunked` may stand in for the block: inference on a CPU that nobody watches."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and block.windows_are_independent
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and choose_backend(block.attn.backend, x.device) == 'fused'
        and not any(
            part.training or part._forward_hooks or part._forward_pre_hooks
            for part in block.modules()
        )
    )


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what a call frees, up to 64 MB, for the next one.

    Otherwise it hands memory back to the system and gets it anew, to be cleared page by page, during every call. It
    keeps twice the largest block that it has seen freed, if that was below 32 MB; this frees one, which nobody used.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def forward_chunked(block: SwinBlock, x: Tensor, partition: WindowPartition) -> Tensor:
    """Map `(B, H, W, C)` to the same shape, as the block does.

    Args:
        block: In eval mode.
        x: Its input.
        partition: How its attention cuts the map.
    """
    keep_freed_memory()
    attn, out = block.attn, torch.empty_like(x)
    exact = torch.promote_types(x.dtype, torch.float32)
    scale, qkv_bias = attn.scale().to(exact), attn.qkv_bias()
    biases: dict[tuple[int, int], Tensor] = {}
    for band in partition.bands(len(x), CHUNK_NUMBERS // x.shape[3]):
        place = (band.images, band.rows)
        qkv = linear(x[place], attn.qkv.weight, qkv_bias)
        attended = x.new_empty(*qkv.shape[:3], x.shape[3])
        with torch.autocast('cpu', enabled=False):
            factors = unit_factors(qkv, scale)
            for tile in band.tiles:
                if tile.window not in biases:
                    bias = attn.tile_bias(partition.window, tile.window)
                    biases[tile.window] = bias.to(exact)
                attend_tile(
                    tile,
                    qkv,
                    factors,
                    biases[tile.window],
                    attended,
                    attn.sequential,
                    products=True,
                )
        del qkv, factors  # the MLP can have their memory
        tokens = attn.proj(attended)
        del attended
        tokens = x[place] + block.norm1(tokens)
        tokens += block.norm2(block.mlp(tokens))
        out[place] = tokens if block.norm3 is None else block.norm3(tokens)
    return out
