"""Transformer blocks and the stages they form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.chunked import forward_chunked, runs_chunked
from swinv2_mm.models.layers.drop_path import DropPath
from swinv2_mm.models.layers.fused_tail import forward_tail, runs_tail
from swinv2_mm.models.layers.linear import Linear
from swinv2_mm.models.layers.patch import PatchMerging
from swinv2_mm.ops.linear import linear
from swinv2_mm.ops.window_attention import WindowPartition


class MLP(nn.Sequential):
    """Two linear layers around a GELU, with the official names `fc1` and `fc2`."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.add_module('fc1', Linear(dim, hidden_dim))
        self.add_module('act', nn.GELU())
        self.add_module('drop1', nn.Dropout(drop))
        self.add_module('fc2', Linear(hidden_dim, dim))
        self.add_module('drop2', nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled() or not self._starts_as_made():
            return super().forward(x)
        first, second, last = cast(Linear, self[0]), self[3], self[4]
        return last(second(linear(x, first.weight, first.bias, gelu=True)))

    def _starts_as_made(self) -> bool:
        """Whether a linear layer and an exact GELU come first, and nothing waits for their calls."""
        if [type(part) for part in self][:3] != [Linear, nn.GELU, nn.Dropout] or len(self) != 5:
            return False
        act = cast(nn.GELU, self[1])
        return act.approximate == 'none' and not any(
            part._forward_hooks or part._forward_pre_hooks or 'forward' in part.__dict__
            for part in list(self)[:3]
        )


class SwinBlock(nn.Module):
    """Window attention and MLP, each normalised at its end before it joins the residual (res-post-norm).

    Args:
        dim: Channels C.
        num_heads: Attention heads.
        window_size: Height and width of a window, in tokens.
        shifted: Whether the windows are moved by half their size.
        pretrained_window_size: See `WindowAttention`.
        mlp_ratio: Hidden width of the MLP over `dim`.
        qkv_bias: See `WindowAttention`.
        drop: Dropout of the attention's and the MLP's output.
        attn_drop: Dropout of attention weights.
        drop_path: Probability of dropping a branch for a sample.
        extra_norm: Whether a LayerNorm on the main branch ends the block (huge and giant models).
        attn_backend: See `swinv2_mm.ops.window_attention`.
        sequential: See `WindowAttention`.
        attention: Class of the attention.
    """

    # Whether what a window becomes depends on its own tokens alone.
    windows_are_independent = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        shifted: bool = False,
        pretrained_window_size: tuple[int, int] = (0, 0),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        extra_norm: bool = False,
        attn_backend: str = 'auto',
        sequential: bool = False,
        attention: Callable[..., WindowAttention] = WindowAttention,
    ) -> None:
        super().__init__()
        self.shifted = shifted
        self.window_size = window_size
        self.attn = attention(
            dim,
            num_heads,
            window_size,
            pretrained_window_size,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=drop,
            backend=attn_backend,
            sequential=sequential,
        )
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None
        self.drop_path = DropPath(drop_path)

    @property
    def shift(self) -> tuple[int, int]:
        """Rows and columns by which the windows are moved."""
        height, width = self.window_size
        return (height // 2, width // 2) if self.shifted else (0, 0)

    def resize(self, window_size: tuple[int, int]) -> None:
        """Attend in windows of another size from now on, with the same weights."""
        self.window_size = window_size
        self.attn.position_mlp.resize(window_size)

    def reset_branches(self, init_value: float | None = 0.0) -> None:
        """Scale both branches by `init_value` at the start; `None` leaves their norms as they are.

        A post-norm scaled by zero makes every block start as the identity: deep models stay stable.
        """
        if init_value is not None:
            for norm in (self.norm1, self.norm2):
                nn.init.constant_(norm.weight, init_value)
                nn.init.zeros_(norm.bias)

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention sees of the block's input, both `(B, H, W, C)`."""
        return x

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Map `(B, H, W, C)` to the same shape; with `overwrite`, inference on a CPU may put the result into `x`."""
        partition = WindowPartition.fit((x.shape[1], x.shape[2]), self.window_size, self.shift)
        if runs_chunked(self, x):
            return forward_chunked(self, x, partition, overwrite and x.is_contiguous())
        if runs_tail(self, x):
            attended = self.attn.attend(self.attention_input(x), partition)
            x = forward_tail(self, x, attended)
        else:
            x = x + self.drop_path(self.norm1(self.attn(self.attention_input(x), partition)))
            x = x + self.drop_path(self.norm2(self.mlp(x)))
        return x if self.norm3 is None else self.norm3(x)


class SwinStage(nn.Module):
    """Blocks of one resolution, plain and shifted in turn, and the way down to the next.

    Args:
        dim: Channels C.
        depth: Number of blocks.
        drop_path: One rate per block.
        downsample: Whether a `PatchMerging` to twice the channels follows.
        extra_norm_every_n_blocks: Every how many blocks one ends with an extra norm; 0 for never.
        with_cp: Whether blocks recompute their activations in the backward pass instead of storing them.
        merging: Class of the downsampling layer.
        block: Class of the blocks.
        ends_with_norm: Whether the last block ends with an extra norm in any case.
        shift_windows: Whether the windows of every other block are shifted.
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
        """Run the blocks on `(B, H, W, C)`; the caller runs `downsample`, since heads want what comes before it."""
        overwrite = False  # the input of the stage is not its own
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, overwrite=True) if overwrite else block(x)
            overwrite = type(block) is SwinBlock and not block._forward_hooks
        return x
