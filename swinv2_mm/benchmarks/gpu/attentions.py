"""The window attention as others would write it: from the map of queries, keys and values to the map of outputs.

All are functions of `qkv (B, H, W, 3 * nH * D)`, `scale (nH, 1, 1)` and `table (nH, 2 * Wh - 1, 2 * Ww - 1)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops.window_attention import WindowPartition, window_attention
from swinv2_mm.ops.window_attention.reference import expand_bias, normalize

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(backend: str, partition: WindowPartition) -> Attention:
    """One of our backends."""

    def attend(qkv: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        return window_attention(qkv, scale, table, partition, backend=backend)

    return attend


def by_flex_attention(partition: WindowPartition, device: str) -> Attention:
    """`flex_attention`; bias and mask are modifications of the scores."""
    from torch.nn.attention.flex_attention import flex_attention

    labels = partition.regions(device)

    def attend(qkv: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        q, k, v = _cut(qkv, scale, table, partition)
        bias = expand_bias(table)

        def modify(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
            score = score + bias[h, q_idx, k_idx]
            if labels is None:
                return score
            window = b % len(labels)
            same = labels[window, q_idx] == labels[window, k_idx]
            return torch.where(same, score, -math.inf)

        out = flex_attention(q, k, v, score_mod=modify, scale=1.0)
        return partition.join(out.transpose(1, 2).flatten(2))

    return attend


def by_sdpa(partition: WindowPartition, device: str) -> Attention:
    """`scaled_dot_product_attention`; bias and mask are one additive mask for every window of an image."""
    labels = partition.regions(device)

    def attend(qkv: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        q, k, v = _cut(qkv, scale, table, partition)
        mask = expand_bias(table)[None]
        if labels is not None:
            apart = labels[:, :, None] != labels[:, None, :]
            mask = mask.masked_fill(apart[:, None], -math.inf)
        mask = mask.to(q.dtype).expand(len(q) // len(mask), *mask.shape).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return partition.join(out.transpose(1, 2).flatten(2))

    return attend


def _cut(
    qkv: Tensor, scale: Tensor, table: Tensor, partition: WindowPartition
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values of all windows, `(B * nW, nH, N, D)` each."""
    windows = partition.split(qkv).unflatten(-1, (3, len(table), -1))
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    return (normalize(q) * scale).to(v.dtype), normalize(k).to(v.dtype), v
