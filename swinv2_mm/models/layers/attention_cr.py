"""The attention of Christoph Reich's reimplementation of SwinV2, which timm continues as `swinv2_cr_*`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.linear import Linear
from swinv2_mm.models.layers.position_bias import PositionBias, SignedLogPositionBias

MIN_TAU = 0.01
TEMPERATURES = ('logit_scale', 'tau')


class WindowAttentionCR(WindowAttention):
    """Attention whose position bias is not bounded and whose queries, keys and values all have a bias.

    Args:
        *args: As of `WindowAttention`.
        temperature: Parameter behind the temperature: `'logit_scale'`, the logarithm of its inverse (timm), or
            `'tau'`, the temperature itself (the original repository).
        meta_hidden_dims: Width of the MLP behind the position bias.
        meta_drop: Dropout in that MLP.
        **options: As of `WindowAttention`. `pretrained_window_size` has no effect: coordinates are in tokens.
    """

    def __init__(
        self,
        *args: Any,
        temperature: str = 'logit_scale',
        meta_hidden_dims: int = 384,
        meta_drop: float = 0.0,
        **options: Any,
    ) -> None:
        self.temperature = temperature
        self.meta_hidden_dims = meta_hidden_dims
        self.meta_drop = meta_drop
        super().__init__(*args, **options)

    def build_scores(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        pretrained_window_size: tuple[int, int],
        qkv_bias: bool,
    ) -> None:
        """See `WindowAttention.build_scores`."""
        temperature = nn.Parameter(torch.empty(num_heads, 1, 1))
        if self.temperature == 'tau':
            self.tau = temperature
        else:
            self.logit_scale = temperature
        self.meta_mlp = SignedLogPositionBias(
            window_size, num_heads, self.meta_hidden_dims, self.meta_drop
        )
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)

    def reset_parameters(self) -> None:
        """Start at temperature 1 for `tau`, 1 / 10 for `logit_scale`, and without bias."""
        if self.temperature == 'tau':
            nn.init.ones_(self.tau)
        else:
            nn.init.constant_(self.logit_scale, math.log(10.0))
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    @property
    def position_mlp(self) -> PositionBias:
        """The module behind `position_bias`."""
        return self.meta_mlp

    def scale(self) -> Tensor:
        """The inverse temperature, `(nH, 1, 1)` in fp32 at least; 100 at most in both forms."""
        if self.temperature == 'tau':
            exact = torch.promote_types(self.tau.dtype, torch.float32)
            return self.tau.to(exact).clamp(min=MIN_TAU).reciprocal()
        return super().scale()

    def qkv_bias(self) -> Tensor | None:
        """The bias of queries, keys and values, `(3 * C,)`."""
        return self.qkv.bias
