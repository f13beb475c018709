"""The attention of Christoph Reich's reimplementation of SwinV2, which timm continues as `swinv2_cr_*`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.position_bias import PositionBias, SignedLogPositionBias
from swinv2_mm.ops.linear import call_linear
from swinv2_mm.ops.window_attention import Pair

MIN_TAU = 0.01
TEMPERATURES = ('logit_scale', 'tau')


class WindowAttentionCR(WindowAttention):
    """Window attention with an unbounded position bias, and with a bias for queries, keys and values.

    Args:
        *args: See `WindowAttention`.
        temperature: Parameter of the temperature: `'logit_scale'`, the logarithm of its inverse (timm), or
            `'tau'`, the temperature itself (the original repository).
        meta_hidden_dims: Hidden width of the position bias MLP.
        meta_drop: Dropout in that MLP.
        **options: See `WindowAttention`. `pretrained_window_size` has no effect: coordinates are in tokens.
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
        window_size: Pair,
        pretrained_window_size: Pair,
        qkv_bias: bool,
    ) -> None:
        """Create the modules of `WindowAttention.build_scores`."""
        temperature = nn.Parameter(torch.empty(num_heads, 1, 1))
        if self.temperature == 'tau':
            self.tau = temperature
        else:
            self.logit_scale = temperature
        self.meta_mlp = SignedLogPositionBias(
            window_size, num_heads, self.meta_hidden_dims, self.meta_drop
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def reset_parameters(self) -> None:
        """Set the temperature to 1 for `tau` or 1 / 10 for `logit_scale`, and biases to zero."""
        if self.temperature == 'tau':
            nn.init.ones_(self.tau)
        else:
            nn.init.constant_(self.logit_scale, math.log(10.0))
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    @property
    def position_mlp(self) -> PositionBias:
        """Module that computes `position_bias`."""
        return self.meta_mlp

    def scale(self) -> Tensor:
        """Return the inverse temperature, `(nH, 1, 1)` in at least fp32, at most 100 for both parameters."""
        if self.temperature == 'tau':
            exact = torch.promote_types(self.tau.dtype, torch.float32)
            return self.tau.to(exact).clamp(min=MIN_TAU).reciprocal()
        return super().scale()

    def project(self, x: Tensor) -> Tensor:
        """Project `(B, H, W, C)` to queries, keys and values, `(B, H, W, 3 * C)`."""
        return call_linear(self.qkv, x)
