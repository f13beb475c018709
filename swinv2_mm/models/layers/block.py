"""Transformer blocks and stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_mm.models.layers import bands
from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.patch import PatchMerging
from swinv2_mm.ops.execution import PLAIN, Execution, is_as_made, kinds, plan_block
from swinv2_mm.ops.linear import call_linear, linear
from swinv2_mm.ops.norm import add_norm
from swinv2_mm.ops.window_attention import (
    Band,
    Pair,
    SymbolicPartition,
    WindowPartition,
    has_symbolic_size,
)


class MLP(nn.Sequential):
    """Two linear layers around a GELU, with the official names `fc1` and `fc2`."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.add_module('fc1', nn.Linear(dim, hidden_dim))
        self.add_module('act', nn.GELU())
        self.add_module('drop1', nn.Dropout(drop))
        self.add_module('fc2', nn.Linear(hidden_dim, dim))
        self.add_module('drop2', nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        # The backward pass needs the input of the GELU.
        if not torch.is_grad_enabled() and len(layers) > 1 and is_as_made(layers[0], nn.Linear):
            first, act = cast(nn.Linear, layers[0]), layers[1]
            if is_as_made(act, nn.GELU) and act.approximate == 'none':
                x = linear(x, first.weight, first.bias, gelu=True)
                layers = layers[2:]
        for layer in layers:
            x = call_linear(layer, x)
        return x


class DropPath(nn.Module):
    """Drop the residual branch of random samples with probability `drop_prob`, and scale the others by 1 / (1 - p)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Apply stochastic depth to `(B, ...)` in training; return the input otherwise."""
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:g}'


class SwinBlock(nn.Module):
    """Window attention and MLP, each normalised before it is added to the residual (res-post-norm).

    Args:
        dim: Channels C.
        num_heads: Number of attention heads.
        window_size: Height and width of a window, in tokens.
        shifted: Whether to shift the windows by half their size.
        mlp_ratio: Ratio of the hidden width of the MLP to `dim`.
        drop: Dropout of the attention's and the MLP's output.
        drop_path: Probability of dropping a branch for a sample.
        extra_norm: Whether to end the block with a LayerNorm on the main branch (huge and giant models).
        attention: Class of the attention.
        **attention_options: The remaining arguments of `WindowAttention`.
    """

    # Whether the output of a window depends on its own tokens only.
    windows_are_independent = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Pair,
        shifted: bool = False,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        extra_norm: bool = False,
        attention: Callable[..., WindowAttention] = WindowAttention,
        **attention_options: Any,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.window_size = window_size
        self.attn = attention(dim, num_heads, window_size, proj_drop=drop, **attention_options)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None
        self.drop_path = DropPath(drop_path)
        # Subclasses may override the forward pass.
        self.made_of = kinds(self) if type(self) is SwinBlock else ()

    @property
    def shift(self) -> Pair:
        """Rows and columns by which the windows are shifted."""
        height, width = self.window_size
        return (height // 2, width // 2) if self.shifted else (0, 0)

    def resize(self, window_size: Pair) -> None:
        """Change the window size."""
        self.window_size = window_size
        self.attn.position_mlp.resize(window_size)

    def reset_branches(self, init_value: float | None = 0.0) -> None:
        """Set the weights of the norms that end both branches to `init_value`; `None` leaves them as they are.

        With zero every block starts as the identity, which keeps deep models stable.
        """
        if init_value is not None:
            for norm in (self.norm1, self.norm2):
                nn.init.constant_(norm.weight, init_value)
                nn.init.zeros_(norm.bias)

    def attention_input(self, x: Tensor) -> Tensor:
        """Return the input of the attention from the input of the block, both `(B, H, W, C)`."""
        return x

    def forward(self, x: Tensor, execution: Execution | None = None) -> Tensor:
        """Map `(B, H, W, C)` to the same shape, as `execution` says; `None` for the result of `plan_block`."""
        how = plan_block(self, x) if execution is None else execution
        kind = SymbolicPartition if has_symbolic_size(x) else WindowPartition
        partition = kind.fit((x.shape[1], x.shape[2]), self.window_size, self.shift)
        if not how.in_bands:
            return self._transform(x, partition)
        out = x if how.overwrite else torch.empty_like(x, memory_format=torch.contiguous_format)
        for band in partition.bands(len(x), bands.BAND_NUMBERS // x.shape[3]):
            place = (band.images, band.rows)
            self._transform(x[place], band, out[place])
        return out

    def _transform(
        self, x: Tensor, windows: WindowPartition | Band, out: Tensor | None = None
    ) -> Tensor:
        """Compute the output of a map, or write the output of a band to `out`."""
        seen = self.attention_input(x)
        if out is None:
            x = x + self.drop_path(self.norm1(self.attn(seen, windows)))
            x = x + self.drop_path(self.norm2(self.mlp(x)))
            return x if self.norm3 is None else self.norm3(x)
        x = add_norm(x, self.attn(seen, windows, remember=True), self.norm1)
        add_norm(x, self.mlp(x), self.norm2, out)
        return out if self.norm3 is None else out.copy_(self.norm3(out))


class SwinStage(nn.Module):
    """Blocks of one resolution, alternately plain and shifted, with an optional downsampling layer.

    Args:
        dim: Channels C.
        depth: Number of blocks.
        drop_path: One rate per block.
        downsample: Whether to end with a `PatchMerging` to twice the channels.
        extra_norm_every_n_blocks: Add an extra norm after every n-th block; 0 for never.
        with_cp: Whether blocks recompute their activations in the backward pass instead of storing them.
        merging: Class of the downsampling layer.
        block: Class of the blocks.
        ends_with_norm: Whether the last block always ends with an extra norm.
        shift_windows: Whether to shift the windows of every other block.
        **block_options: The remaining arguments of `SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        drop_path: list[float],
        downsample: bool,
        extra_norm_every_n_blocks: int = 0,
        with_cp: bool = False,
        merging: Callable[[int], nn.Module] = PatchMerging,
        block: Callable[..., SwinBlock] = SwinBlock,
        ends_with_norm: bool = False,
        shift_windows: bool = True,
        **block_options: Any,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        every = extra_norm_every_n_blocks
        self.blocks = nn.ModuleList(
            block(
                dim,
                shifted=shift_windows and index % 2 == 1,
                drop_path=drop_path[index],
                extra_norm=(every > 0 and (index + 1) % every == 0)
                or (ends_with_norm and index == depth - 1),
                **block_options,
            )
            for index in range(depth)
        )
        self.downsample = merging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on `(B, H, W, C)`. The caller runs `downsample`, since heads use its input."""
        is_owned = False  # the input belongs to the caller
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
                continue
            how = plan_block(block, x, is_owned)
            x = block(x) if how == PLAIN else block.forward(x, how)
            is_owned = how.in_bands
        return x
