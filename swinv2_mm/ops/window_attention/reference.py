"""The clear form of the attention; every other backend is measured against it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The paper keeps the temperature above 0.01, so the learned scale never exceeds 100.
MAX_LOG_SCALE = math.log(1.0 / 0.01)
# A vector shorter than this has no direction worth a gradient.
MIN_NORM = 1e-6


def normalize(x: Tensor) -> Tensor:
    """Scale the vectors of the last axis to unit length, in fp32 at least.

    A zero vector stays zero and passes no gradient. That case is real: keys have no bias, so a token of a constant
    image can have an all-zero key, for which a division by the bare length gives NaN in fp16 and gradients of
    1e12 in fp32.

    Args:
        x: `(..., D)`.

    Returns:
        `(..., D)` in fp32, or fp64 where `x` is fp64.
    """
    x = x if x.dtype == torch.float64 else x.float()
    squared = x.square().sum(dim=-1, keepdim=True)
    inverse = squared.clamp_min(MIN_NORM**2).rsqrt()
    return x * inverse.where(squared > MIN_NORM**2, torch.zeros_like(inverse))


def reference_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor,
    bias: Tensor,
    regions: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """See `window_attention`. Logits and softmax are in fp32 whatever the dtype of the inputs."""
    dtype = v.dtype
    with torch.autocast(device_type=q.device.type, enabled=False):
        scale = logit_scale.to(bias.dtype).clamp(max=MAX_LOG_SCALE).exp()
        logits = normalize(q) @ normalize(k).transpose(-2, -1)
        logits = logits * scale + bias
        if regions is not None:
            num_windows = regions.shape[0]
            apart = regions[:, :, None] != regions[:, None, :]  # (nW, N, N)
            logits = logits.unflatten(0, (-1, num_windows))
            # Minus infinity, not the customary -100: scores span 200, so -100 would let masked tokens through.
            logits = logits.masked_fill(apart[None, :, None], -math.inf)
            logits = logits.flatten(0, 1)
        weights = F.dropout(logits.softmax(dim=-1), dropout_p, training=dropout_p > 0)
        return weights.to(dtype) @ v
