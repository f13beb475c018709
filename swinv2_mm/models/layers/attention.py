"""Multi-head attention over the tokens of a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from swinv2_mm.models.layers.eval_cache import EvalCache
from swinv2_mm.models.layers.linear import Linear
from swinv2_mm.models.layers.position_bias import ContinuousPositionBias, PositionBias
from swinv2_mm.ops.linear import linear
from swinv2_mm.ops.window_attention import WindowPartition, window_attention

# The paper keeps the temperature above 0.01, so the learned scale never exceeds 100.
MAX_LOG_SCALE = math.log(1.0 / 0.01)


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
        sequential: Whether windows are attended one after the other, to hold the fewest scores at a time.
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
        sequential: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = backend
        self.sequential = sequential
        self.attn_drop = attn_drop
        self.build_scores(dim, num_heads, window_size, pretrained_window_size, qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._biases = EvalCache()
        self.reset_parameters()

    def build_scores(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        pretrained_window_size: tuple[int, int],
        qkv_bias: bool,
    ) -> None:
        """Create what `qkv_bias`, `scale` and `position_bias` read, and `self.qkv`; arguments as of the class."""
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = ContinuousPositionBias(window_size, pretrained_window_size, num_heads)
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None

    @property
    def position_mlp(self) -> PositionBias:
        """The module behind `position_bias`."""
        return self.cpb_mlp

    def reset_parameters(self) -> None:
        """Start at inverse temperature 10 and without bias, as the official models do."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        if self.q_bias is not None and self.v_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def scale(self) -> Tensor:
        """The inverse temperature, `(nH, 1, 1)` in fp32 at least."""
        exact = torch.promote_types(self.logit_scale.dtype, torch.float32)
        return self.logit_scale.to(exact).clamp(max=MAX_LOG_SCALE).exp()

    def qkv_bias(self) -> Tensor | None:
        """The bias of queries, keys and values, `(3 * C,)`; that of keys is zero."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def position_bias(self, window: tuple[int, int]) -> Tensor:
        """Bias by offset between the tokens of a window, `(nH, 2 * Wh - 1, 2 * Ww - 1)` in fp32 at least."""
        return self.position_mlp(window)

    def remembered_bias(
        self, window: tuple[int, int], name: Hashable, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What an attention backend makes of the position bias, remembered for inference on a CPU.

        Args:
            window: Height and width of the window, as for `position_bias`.
            name: Of what is made of it.
            change: Makes it from `position_bias(window)`.
        """
        source = self.position_mlp
        return self._biases.get(
            (window, name),
            (*source.parameters(), *source.buffers()),
            lambda: change(self.position_bias(window)),
        )

    def forward(self, x: Tensor, partition: WindowPartition) -> Tensor:
        """Attend within the windows of a map.

        Args:
            x: `(B, H, W, C)`.
            partition: How the map is cut.

        Returns:
            `(B, H, W, C)`.
        """
        return self.proj_drop(self.proj(self.attend(x, partition)))

    def attend(self, x: Tensor, partition: WindowPartition) -> Tensor:
        """As `forward`, without the projection at its end."""
        return window_attention(
            linear(x, self.qkv.weight, self.qkv_bias()),
            self.scale(),
            self.position_bias(partition.window),
            partition,
            dropout_p=self.attn_drop if self.training else 0.0,
            backend=self.backend,
            sequential=self.sequential,
        )
