"""Blocks whose attention looks at a resampled map: every head moves the tokens to where it wants to look."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.layers.block import SwinBlock

MAX_OFFSET = 8.0
"""How far a head can look, in tokens along each axis: one window of the default size."""


class DeformableSwinBlock(SwinBlock):
    """`SwinBlock` whose attention reads its input at learned offsets, one per token and head.

    The offset network (depthwise 5 x 5 convolution of stride 2, GELU, 1 x 1 convolution) is that of Christoph Reich's
    repository, after Xia et al., *Vision Transformer with Deformable Attention* (arXiv 2201.00520). Different from
    there: offsets count in tokens, so that the same weights move by the same distance at every input size; only they,
    not the whole grid, go through tanh, so that zero offsets read every token where it is; the residual is not
    resampled; and the last convolution has no bias, which would be one offset for the whole image.

    Args:
        dim: Channels C.
        num_heads: Attention heads nH.
        *args: The remaining arguments of `SwinBlock`.
        **options: The same by name.

    Attributes:
        offsets: Of the last forward pass, `(B, nH, H, W, 2)` in tokens, x before y, without gradient; `None` before.
    """

    windows_are_independent = False  # a head may look into the next one

    def __init__(self, dim: int, num_heads: int, *args: Any, **options: Any) -> None:
        super().__init__(dim, num_heads, *args, **options)
        self.offset_network = nn.Sequential(
            nn.Conv2d(dim, dim, 5, stride=2, padding=2, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, 2 * num_heads, 1, bias=False),
        )
        self.offsets: Tensor | None = None
        self.reset_offsets()

    def reset_branches(self, init_value: float | None = 0.0) -> None:
        """As of `SwinBlock`; offsets start at zero."""
        super().reset_branches(init_value)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Start without offsets, as the plain block."""
        nn.init.zeros_(cast(nn.Conv2d, self.offset_network[2]).weight)

    def compute_offsets(self, x: Tensor) -> Tensor:
        """Where each head looks from each token of `(B, H, W, C)`.

        Returns:
            `(B, nH, H, W, 2)` in tokens, x before y, each in (-8, 8); in fp32 at least.
        """
        raw = self.offset_network(x.permute(0, 3, 1, 2))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        raw = F.interpolate(raw, size=x.shape[1:3], mode='bilinear', align_corners=False)
        return MAX_OFFSET * raw.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2).tanh()

    def attention_input(self, x: Tensor) -> Tensor:
        """Resample `(B, H, W, C)` at the offsets, head by head; beyond the border lies the nearest token."""
        offsets = self.compute_offsets(x)
        self.offsets = offsets.detach()
        return resample(x, offsets)


def resample(x: Tensor, offsets: Tensor) -> Tensor:
    """Read a map at an offset from each token, bilinearly, with offsets of their own for each group of channels.

    Args:
        x: `(B, H, W, C)`.
        offsets: `(B, nH, H, W, 2)` in tokens, x before y; nH divides C.

    Returns:
        `(B, H, W, C)` in the dtype of `x`.
    """
    batch, height, width, channels = x.shape
    heads = offsets.shape[1]
    col, row = (
        torch.arange(size, device=x.device, dtype=offsets.dtype) for size in (width, height)
    )
    right, down = offsets.unbind(-1)
    # In the units of `grid_sample`, the outer edges of the map are at -1 and 1.
    across = (2 * (col + right) + 1) / width - 1
    along = (2 * (row[:, None] + down) + 1) / height - 1
    grid = torch.stack((across, along), dim=-1)
    maps = x.unflatten(3, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B * nH, D, H, W)
    # Half precision could not tell the tokens of a large map apart.
    with torch.autocast(x.device.type, enabled=False):
        maps = F.grid_sample(
            maps.to(grid.dtype),
            grid.flatten(0, 1),
            mode='bilinear',
            padding_mode='border',
            align_corners=False,
        )
    maps = maps.view(batch, heads, channels // heads, height, width)
    return maps.permute(0, 3, 4, 1, 2).reshape(x.shape).to(x.dtype)
