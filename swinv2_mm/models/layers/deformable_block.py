"""Blocks whose attention reads a map that each head resamples at learned offsets."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.layers.block import SwinBlock
from swinv2_mm.ops import private

MAX_OFFSET = 8.0
"""Largest offset in tokens along each axis: one window of the default size."""


class DeformableSwinBlock(SwinBlock):
    """`SwinBlock` whose attention reads its input at learned offsets, one per token and head.

    The offset network (depthwise 5 x 5 convolution of stride 2, GELU, 1 x 1 convolution) is that of Christoph Reich's
    repository, after Xia et al., *Vision Transformer with Deformable Attention* (arXiv 2201.00520). Differences:
    offsets are in tokens, so they do not depend on the input size; tanh is applied to the offsets instead of the whole
    grid, so that zero offsets leave tokens in place; the residual is not resampled; and the last convolution does not
    have a bias, which would move the whole image.

    Args:
        dim: Channels C.
        num_heads: Attention heads nH.
        *args: The remaining arguments of `SwinBlock`.
        **options: Keyword arguments of `SwinBlock`.

    Attributes:
        offsets: Offsets of the last forward pass, `(B, nH, H, W, 2)` in tokens, x before y, detached; or `None`.
    """

    windows_are_independent = False  # offsets may reach into other windows

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
        """Reset the branches as in `SwinBlock.reset_branches`, and set offsets to zero."""
        super().reset_branches(init_value)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Set the offsets to zero, which makes the block a plain one."""
        nn.init.zeros_(cast(nn.Conv2d, self.offset_network[2]).weight)

    def compute_offsets(self, x: Tensor) -> Tensor:
        """Compute the offsets of each head and token of `(B, H, W, C)`.

        Returns:
            `(B, nH, H, W, 2)` in tokens, x before y, each in (-8, 8); in at least fp32.
        """
        raw = self.offset_network(x.permute(0, 3, 1, 2))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        raw = F.interpolate(raw, size=x.shape[1:3], mode='bilinear', align_corners=False)
        return MAX_OFFSET * raw.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2).tanh()

    def attention_input(self, x: Tensor) -> Tensor:
        """Resample `(B, H, W, C)` at the offsets of each head; beyond the border the nearest token is used."""
        offsets = self.compute_offsets(x)
        self.offsets = offsets.detach()
        return resample(x, offsets)


def resample(x: Tensor, offsets: Tensor) -> Tensor:
    """Sample `(B, H, W, C)` bilinearly at an offset from each token, separately for nH groups of channels.

    `offsets` are `(B, nH, H, W, 2)` in tokens, x before y.
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
    # Half precision cannot represent the coordinates of a large map.
    with private.no_autocast(x.device):
        maps = F.grid_sample(
            maps.to(grid.dtype),
            grid.flatten(0, 1),
            mode='bilinear',
            padding_mode='border',
            align_corners=False,
        )
    maps = maps.view(batch, heads, channels // heads, height, width)
    return maps.permute(0, 3, 4, 1, 2).reshape(x.shape).to(x.dtype)
