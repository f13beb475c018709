"""From pixels to tokens, and from a map to one of half its size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.layers.chunked import in_bands
from swinv2_mm.models.layers.linear import Linear


class PatchEmbed(nn.Module):
    """Embed patches of an image that do not overlap; an image that ends within a patch is padded with zeros.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels C of the tokens.
        patch_size: Side of a patch, in pixels.
        patch_norm: Whether the tokens are normalised.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: int = 4, patch_norm: bool = True
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims) if patch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, ceil(H / patch_size), ceil(W / patch_size), C)`."""
        return in_bands(self, self._embed, x, 2, self.patch_size)

    def _embed(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        # From an image with its channels last come tokens that need not be moved.
        x = self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        return x.contiguous() if self.norm is None else self.norm(x)


class PatchMerging(nn.Module):
    """Merge 2 x 2 neighbours into one token with twice the channels; an odd side is padded with zeros.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), 2C)`."""
        return in_bands(self, self._merge, x, 1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(_join_neighbours(x)))


class PreNormPatchMerging(nn.Module):
    """`PatchMerging` with the norm before the reduction, as in SwinV1 and Christoph Reich's reimplementation.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), 2C)`."""
        return in_bands(self, self._merge, x, 1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(_join_neighbours(x)))


def _join_neighbours(x: Tensor) -> Tensor:
    """Map `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), 4C)`; an odd side is padded with zeros."""
    bottom, right = x.shape[1] % 2, x.shape[2] % 2
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    # The official order of the four: down the first column, then down the second.
    return torch.cat([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=-1)
