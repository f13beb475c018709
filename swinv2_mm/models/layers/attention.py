"""Multi-head attention over the tokens of a window."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.layers.position_bias import ContinuousPositionBias
from swinv2_mm.models.layers.window import WindowPartition
from swinv2_mm.ops.window_attention import window_attention


class WindowAttention(nn.Module):
    """Scaled cosine attention with continuous position bias, over windows of a feature map.

    Args:
        dim: Channels C.
        num_heads: Attention heads nH; divides `dim`.
        window_size: Height and width of a window, in tokens.
        pretrained_window_size: The same for the weights' training window; `(0, 0)` for `window_size`.
        qkv_bias: Whether queries and values have a bias (keys never do).
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        backend: See `swinv2_mm.ops.window_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        pretrained_window_size: tuple[int, int] = (0, 0),
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.attn_drop = attn_drop
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = ContinuousPositionBias(window_size, pretrained_window_size, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at inverse temperature 10 and without bias, as the official models do."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        if self.q_bias is not None and self.v_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def forward(self, x: Tensor, partition: WindowPartition) -> Tensor:
        """Attend within the windows of a map.

        Args:
            x: `(B, H, W, C)`.
            partition: How the map is cut.

        Returns:
            `(B, H, W, C)`.
        """
        windows = partition.split(x)  # (B * nW, N, C)
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(windows, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = window_attention(
            q,
            k,
            v,
            self.logit_scale,
            self.cpb_mlp(partition.window),
            partition.regions(x.device),
            dropout_p=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        return partition.join(out)
