"""Patch embedding and patch merging."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.layers.bands import in_bands
from swinv2_mm.ops import private
from swinv2_mm.ops.execution import is_as_made, is_one_patch_wide, kinds, lacks_threads
from swinv2_mm.ops.linear import call_linear
from swinv2_mm.ops.window_attention import has_symbolic_size


class PatchEmbed(nn.Module):
    """Embed non-overlapping patches of an image; an image that ends within a patch is padded with zeros.

    Args:
        in_channels: Channels of the image.
        embed_dims: Channels C of the tokens.
        patch_size: Side of a patch, in pixels.
        patch_norm: Whether to normalise the tokens.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: int = 4, patch_norm: bool = True
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims) if patch_norm else None
        self.made_of = kinds(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, ceil(H / patch_size), ceil(W / patch_size), C)`."""
        if not self._is_patchwise():
            return self._embed(x)
        return in_bands(self, self._embed, x, 2, self.patch_size)

    def _is_patchwise(self) -> bool:
        """Return whether the convolution reads each patch alone: a replacement may not."""
        proj, side = self.proj, (self.patch_size, self.patch_size)
        return (
            type(proj) is nn.Conv2d
            and proj.kernel_size == proj.stride == side
            and proj.padding == (0, 0)
            and proj.dilation == (1, 1)
            and proj.groups == 1
        )

    def _embed(self, x: Tensor) -> Tensor:
        side = self.patch_size
        bottom, right = -x.shape[2] % side, -x.shape[3] % side
        if has_symbolic_size(x):
            height, width = (size + (side - 1) - (size + (side - 1)) % side for size in x.shape[2:])
            x = F.pad(x, (0, side - 1, 0, side - 1))[:, :, :height, :width]
        elif bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        if (
            self._is_patchwise()
            and is_as_made(self.proj, nn.Conv2d)
            and (lacks_threads(x) or is_one_patch_wide(x, side))
        ):
            x = self._embed_by_product(x)
        else:
            # Does not copy images in channels-last format.
            x = self.proj(private.channels_last(x)).permute(0, 2, 3, 1)
        return x.contiguous() if self.norm is None else self.norm(x)

    def _embed_by_product(self, x: Tensor) -> Tensor:
        side = self.patch_size
        patches = x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)


class PatchMerging(nn.Module):
    """Merge 2 x 2 neighbours of `dim` channels into one token with twice as many; an odd side is padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)
        self.made_of = kinds(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), 2C)`."""
        return in_bands(self, self._merge, x, 1, 2)

    def _merge(self, x: Tensor) -> Tensor:
        return self.norm(call_linear(self.reduction, _join_neighbours(x)))


class PreNormPatchMerging(PatchMerging):
    """`PatchMerging` with the norm before the reduction, as in SwinV1 and Christoph Reich's reimplementation."""

    def __init__(self, dim: int) -> None:
        nn.Module.__init__(self)
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.made_of = kinds(self)

    def _merge(self, x: Tensor) -> Tensor:
        return call_linear(self.reduction, self.norm(_join_neighbours(x)))


def _join_neighbours(x: Tensor) -> Tensor:
    """Map `(B, H, W, C)` to `(B, ceil(H / 2), ceil(W / 2), 4C)`; an odd side is padded with zeros."""
    height, width = x.shape[1:3]
    if has_symbolic_size(x):
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
        parts = [
            x[:, row : height + row : 2, col : width + col : 2] for col in (0, 1) for row in (0, 1)
        ]
        return torch.cat(parts, dim=-1)
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    # The official order: down the first column, then down the second.
    return torch.cat([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=-1)
