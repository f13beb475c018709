"""Reference implementation of the attention, which defines the results of all backends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops import private
from swinv2_mm.ops.window_attention.partition import WindowPartition

# Shorter vectors count as zero vectors.
MIN_NORM = 1e-6


def normalize(x: Tensor) -> Tensor:
    """Scale the vectors of the last axis to unit length, in at least fp32.

    Zero vectors stay zero and have zero gradients. They occur: keys do not have a bias, so a token of a constant image
    can have an all-zero key, for which a division by the length gives NaN in fp16 and gradients of 1e12 in fp32.
    """
    x = x if x.dtype == torch.float64 else x.float()
    squared = x.square().sum(dim=-1, keepdim=True)
    inverse = squared.clamp_min(MIN_NORM**2).rsqrt()
    return x * torch.where(squared > MIN_NORM**2, inverse, 0.0)


def expand_bias(table: Tensor) -> Tensor:
    """Expand a bias table to the bias of every pair of tokens of a window, `(nH, N, N)`, query before key."""
    height, width = ((extent + 1) // 2 for extent in table.shape[1:])
    # table[i - j + h - 1] for a query at i and a key at j: sliding windows over the table list i + j', and
    # flipping turns j' = h - 1 - j into j. This does not need an index of N x N entries.
    pairs = table.unfold(1, height, 1).unfold(2, width, 1).flip(-2, -1)
    return pairs.reshape(-1, height * width, height * width)


def fold_bias(grad: Tensor, window: Sequence[int]) -> Tensor:
    """Sum gradients for every pair of tokens, `(nH, N, N)`, to those of the table (adjoint of `expand_bias`)."""
    height, width = window
    pairs = grad.unflatten(1, (height, width)).unflatten(3, (height, width)).transpose(2, 3)
    by_col = _sum_by_difference(pairs).permute(0, 3, 1, 2)
    return _sum_by_difference(by_col).transpose(1, 2).contiguous()


def _sum_by_difference(x: Tensor) -> Tensor:
    """Sum `(..., N, N)` over pairs of equal difference: `(..., 2 * N - 1)`, starting at 1 - N."""
    size = x.shape[-1]
    # Rows of 2 N numbers, read as rows of 2 N - 1: each row is shifted by one.
    skewed = F.pad(x.flip(-1), (0, size)).flatten(-2)[..., : size * (2 * size - 1)]
    return skewed.unflatten(-1, (size, 2 * size - 1)).sum(-2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    bias: Tensor,
    regions: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute attention inside windows that are already cut out. Logits and softmax are in fp32 for all dtypes.

    Queries, keys, values and the output are `(B * nW, nH, N, D)`, windows of one image consecutive, the bias is
    `(nH, N, N)`, and `regions` are those of `WindowPartition`.
    """
    logits = normalize(q) @ normalize(k).transpose(-2, -1)
    logits = logits * scale.to(logits.dtype) + bias.to(logits.dtype)
    if regions is not None:
        num_windows = regions.shape[0]
        apart = regions[:, :, None] != regions[:, None, :]  # (nW, N, N)
        logits = logits.reshape(-1, num_windows, *logits.shape[1:])
        # Minus infinity, not the usual -100: logits span a range of 200, so -100 would not mask.
        logits = logits.masked_fill(apart[None, :, None], -math.inf)
        logits = logits.flatten(0, 1)
    weights = F.dropout(logits.softmax(dim=-1), dropout_p, training=dropout_p > 0)
    return weights.to(v.dtype) @ v


def reference_window_attention(
    qkv: Tensor,
    scale: Tensor,
    bias_table: Tensor,
    partition: WindowPartition,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute `window_attention` by padding, shifting, cutting and masking."""
    with private.no_autocast(qkv.device):
        windows = partition.split(qkv).unflatten(-1, (3, len(bias_table), -1))
        q, k, v = windows.permute(2, 0, 3, 1, 4)  # (B * nW, nH, N, D) each
        bias, regions = expand_bias(bias_table), partition.regions(qkv.device)
        out = attend(q, k, v, scale, bias, regions, dropout_p)
        return partition.join(out.transpose(1, 2).flatten(2))


def differentiable_gradients(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], partition: WindowPartition
) -> list[Tensor | None]:
    """Return differentiable gradients of `qkv`, `scale` and `bias_table`, for `create_graph=True`."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.enable_grad():
        out = reference_window_attention(*inputs, partition)
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
