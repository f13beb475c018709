"""Multi-head attention over the tokens of a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor, nn

from swinv2_mm.models.layers.position_bias import ContinuousPositionBias, PositionBias
from swinv2_mm.ops.execution import is_as_made
from swinv2_mm.ops.linear import call_linear, linear
from swinv2_mm.ops.window_attention import Band, Pair, WindowPartition, window_attention

# The paper keeps the temperature above 0.01, so the scale is at most 100.
MAX_LOG_SCALE = math.log(1.0 / 0.01)


class EvalCache:
    """Cache of values that inference computes from weights, valid as long as the weights do not change.

    The weights are compared by value with a copy, because edits through `.data` do not change the version of a
    parameter. This is cheap only on a CPU, for the few weights of a position bias.
    """

    entries = 8  # the oldest is dropped

    def __init__(self) -> None:
        self._kept: tuple[list[Tensor], dict[Hashable, Tensor]] = [], {}

    def get(self, key: Hashable, weights: list[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Return the value of `key`; compute it if it is not cached for these weights."""
        known, values = self._kept  # read together: another thread may replace them
        if len(weights) != len(known) or not all(
            new.dtype == old.dtype and new.device == old.device and torch.equal(new, old)
            for new, old in zip(weights, known)
        ):
            values = {}
            self._kept = [weight.detach().clone() for weight in weights], values
        value = values.get(key)
        if value is None:
            value = compute()
            while len(values) >= self.entries:
                values.pop(next(iter(list(values))), None)
            values[key] = value
        return value

    def __reduce__(self) -> tuple[type[EvalCache], tuple[()]]:
        # Copied and pickled models have an empty cache.
        return EvalCache, ()


class WindowAttention(nn.Module):
    """Scaled cosine attention with continuous position bias, over windows of a feature map.

    Args:
        dim: Channels C.
        num_heads: Attention heads nH; divides `dim`.
        window_size: Height and width of a window, in tokens.
        pretrained_window_size: The window that the weights were trained with; `(0, 0)` for `window_size`.
        qkv_bias: Whether queries and values have a bias (keys never do).
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        backend: See `swinv2_mm.ops.window_attention`.
        sequential: Whether to process windows one by one, which needs the least memory for scores.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Pair,
        pretrained_window_size: Pair = (0, 0),
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
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._biases = EvalCache()
        self.reset_parameters()

    def build_scores(
        self,
        dim: int,
        num_heads: int,
        window_size: Pair,
        pretrained_window_size: Pair,
        qkv_bias: bool,
    ) -> None:
        """Create the parameters of `project`, `scale` and `position_bias`; see the class for the arguments."""
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.cpb_mlp = ContinuousPositionBias(window_size, pretrained_window_size, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None

    @property
    def position_mlp(self) -> PositionBias:
        """Module that computes `position_bias`."""
        return self.cpb_mlp

    def reset_parameters(self) -> None:
        """Set the inverse temperature to 10 and biases to zero, as in the official models."""
        nn.init.constant_(self.logit_scale, math.log(10.0))
        if self.q_bias is not None and self.v_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def scale(self) -> Tensor:
        """Return the inverse temperature, `(nH, 1, 1)` in at least fp32."""
        exact = torch.promote_types(self.logit_scale.dtype, torch.float32)
        return self.logit_scale.to(exact).clamp(max=MAX_LOG_SCALE).exp()

    def project(self, x: Tensor) -> Tensor:
        """Project `(B, H, W, C)` to queries, keys and values, `(B, H, W, 3 * C)`; keys do not have a bias."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        if is_as_made(self.qkv, nn.Linear) and self.qkv.bias is None:
            return linear(x, self.qkv.weight, bias)
        qkv = self.qkv(x)
        return qkv if bias is None else qkv + bias.to(qkv.dtype)

    def position_bias(self, window: Pair) -> Tensor:
        """Return the bias by offset between tokens, `(nH, 2 * Wh - 1, 2 * Ww - 1)` in at least fp32."""
        return self.position_mlp(window)

    def remembered_bias(
        self, window: Pair, name: Hashable, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return `change(position_bias(window))`, cached under `name` for inference on a CPU."""
        source = self.position_mlp
        return self._biases.get(
            (window, name),
            [*source.parameters(), *source.buffers()],
            lambda: change(self.position_bias(window)),
        )

    def forward(self, x: Tensor, windows: WindowPartition | Band, remember: bool = False) -> Tensor:
        """Map `(B, H, W, C)` to the same shape; `remember` caches position biases for the next call."""
        window = windows.window
        attended = window_attention(
            self.project(x),
            self.scale(),
            partial(self.remembered_bias, window) if remember else self.position_bias(window),
            windows,
            dropout_p=self.attn_drop if self.training else 0.0,
            backend=self.backend,
            sequential=self.sequential,
        )
        return self.proj_drop(call_linear(self.proj, attended))
