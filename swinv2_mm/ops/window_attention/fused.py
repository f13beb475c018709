"""Attention without masks, padding or stored scores, with operators of torch.

A shifted, padded and masked window is equivalent to a set of independent smaller windows (`WindowPartition.tiles`).
These do not need shift, padding or masks, and masked scores are not computed. They are processed in chunks that fit the
cache. The backward pass recomputes the scores of a chunk, so that memory does not grow with windows x N x N.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops import private
from swinv2_mm.ops.execution import differentiates_plainly
from swinv2_mm.ops.window_attention.partition import Band, Pair, WindowPartition
from swinv2_mm.ops.window_attention.reference import (
    MIN_NORM,
    differentiable_gradients,
    expand_bias,
    fold_bias,
)

# Bytes of a chunk that stay in the cache of a CPU: of queries, keys and values in the forward pass, and of scores in
# the backward pass.
CHUNK_BYTES = 2**22
# On a GPU larger chunks are faster, limited by the grid size of torch's kernels.
CHUNK_BYTES_GPU = 2**28
MOST_WINDOWS_GPU = 2**16 - 1


def crop_table(table: Tensor, window: Pair) -> Tensor:
    """Return the biases of a smaller window: the middle of the table, a view `(nH, 2 * h - 1, 2 * w - 1)`."""
    top, left = ((extent + 1) // 2 - side for extent, side in zip(table.shape[1:], window))
    return table[:, top : top + 2 * window[0] - 1, left : left + 2 * window[1] - 1]


def inverse_norms(x: Tensor) -> Tensor:
    """Return the inverse norms of the vectors of the last axis, `(..., 1)` in at least fp32.

    They are 0 where `reference.normalize` returns 0.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    return norms.clamp_min(MIN_NORM).reciprocal_().masked_fill_(norms <= MIN_NORM, 0)


def _heads_first(windows: Tensor, parts: int, heads: int) -> Tensor:
    """View `Tile.view`, `(B, rows, cols, h, w, parts * nH * D)`, as `(parts, B, rows, cols, nH, h, w, D)`."""
    return windows.unflatten(-1, (parts, heads, -1)).permute(5, 0, 1, 2, 6, 3, 4, 7)


def windows_per_chunk(bytes_per_window: int, device: torch.device, sequential: bool = False) -> int:
    """Return the number of windows per chunk."""
    if sequential:
        return 1
    most = 2**31 if device.type == 'cpu' else MOST_WINDOWS_GPU
    if torch.compiler.is_compiling():
        return most  # the compiler would unroll the loop over chunks
    budget = CHUNK_BYTES if device.type == 'cpu' else CHUNK_BYTES_GPU
    return min(most, max(1, budget // bytes_per_window))


def _infer(
    qkv: Tensor, scale: Tensor, derive: Any, windows: WindowPartition | Band, sequential: bool
) -> Tensor:
    """Compute `window_attention` without gradients."""
    exact, heads = torch.promote_types(qkv.dtype, torch.float32), len(scale)
    # Inverse norms of queries, times `scale`, and of keys.
    factors = inverse_norms(qkv.unflatten(-1, (3, heads, -1))[..., :2, :, :])
    factors[..., 0, :, :].mul_(scale.to(exact).view(-1, 1))
    factors = factors.flatten(-3)
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    for tile in windows.tiles():
        bias = derive(tile.window, partial(_bias_of, tile.window)).to(exact)
        tokens = bias.shape[1]
        size = tokens * qkv.shape[3] * bias.itemsize
        for chunk in tile.chunks(len(qkv), windows_per_chunk(size, qkv.device, sequential)):
            source = _heads_first(chunk.view(qkv), 3, heads)
            # One copy cuts out the windows, normalises queries and keys and moves heads before tokens.
            cut = bias.new_empty(source.shape)
            torch.mul(source[:2], _heads_first(chunk.view(factors), 2, heads), out=cut[:2])
            cut[2].copy_(source[2])
            q, k, v = cut.view(3, -1, heads, tokens, source.shape[-1])
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0)
            chunk.put(found.transpose(1, 2), out)
    return out


def _bias_of(window: Pair, table: Tensor) -> Tensor:
    """Return the bias of all pairs of tokens of a window, `(nH, N, N)`."""
    return expand_bias(crop_table(table, window)).contiguous()


def _backward_of_chunk(
    qkv: Tensor, grad: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `qkv` `(3, n, nH, N, D)`, scale `(nH,)` and bias `(nH, N, N)` from that of the output."""
    count, heads, tokens, _ = grad.shape
    inverse = inverse_norms(qkv[:2])
    units = qkv[:2] * inverse
    q, k, v = (x.flatten(0, 1) for x in (units[0] * scale, units[1], qkv[2]))
    grad = grad.flatten(0, 1)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(count, heads, tokens, tokens).add_(bias)
    weights = torch.softmax(scores, dim=-1)
    of_weights = torch.bmm(grad, v.transpose(1, 2), out=scores)
    of_scores = private.softmax_backward(of_weights, weights)
    grads = torch.empty_like(qkv)
    torch.bmm(of_scores, k, out=grads[0].view(q.shape))
    torch.bmm(of_scores.transpose(1, 2), q, out=grads[1].view(q.shape))
    torch.bmm(weights.transpose(1, 2), grad, out=grads[2].view(q.shape))
    # Gradient of the normalisation: remove the component parallel to the unit vector.
    parallel = (grads[:2] * units).sum(-1, keepdim=True)
    grad_scale = parallel[0].sum((0, 2, 3))
    grads[:2].sub_(units.mul_(parallel)).mul_(inverse)
    grads[0].mul_(scale)
    of_scores = of_scores.view(count, heads, tokens, tokens)
    return grads, grad_scale, of_scores[0] if count == 1 else of_scores.sum(0)


class _FusedWindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        scale: Tensor,
        table: Tensor,
        partition: WindowPartition,
        sequential: bool,
    ) -> Tensor:
        ctx.save_for_backward(qkv, scale, table)
        ctx.partition, ctx.sequential = partition, sequential
        return _infer(qkv, scale, lambda name, change: change(table), partition, sequential)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, scale, table = ctx.saved_tensors
        if differentiates_plainly() or private.is_batched(grad):
            return (*differentiable_gradients(grad, (qkv, scale, table), ctx.partition), None, None)
        exact = torch.promote_types(qkv.dtype, torch.float32)
        with private.no_autocast(qkv.device):
            exact_scale, exact_table = scale.to(exact), table.to(exact)
            grad_qkv = torch.empty_like(qkv)
            grad_scale = exact_scale.new_zeros(len(table))
            grad_table = torch.zeros_like(exact_table)
            for tile in ctx.partition.tiles():
                tokens = tile.window[0] * tile.window[1]
                bias = _bias_of(tile.window, exact_table)
                grad_bias = torch.zeros_like(bias)
                size = 2 * len(table) * tokens * tokens * exact.itemsize  # two arrays exist at once
                most = windows_per_chunk(size, qkv.device, ctx.sequential)
                for chunk in tile.chunks(len(qkv), most):
                    source = _heads_first(chunk.view(qkv), 3, len(table))
                    of_out = _heads_first(chunk.view(grad), 1, len(table))
                    shape = (-1, len(table), tokens, source.shape[-1])
                    # One copy moves heads before tokens for batched matrix products.
                    grads, of_scale, of_bias = _backward_of_chunk(
                        source.to(exact).contiguous().view(3, *shape),
                        of_out.to(exact).contiguous().view(shape),
                        exact_scale,
                        bias,
                    )
                    _heads_first(chunk.view(grad_qkv), 3, len(table)).copy_(
                        grads.view(source.shape)
                    )
                    grad_scale += of_scale
                    grad_bias += of_bias
                crop_table(grad_table, tile.window).add_(fold_bias(grad_bias, tile.window))
        grad_scale = grad_scale.view(scale.shape).to(scale.dtype)
        return grad_qkv, grad_scale, grad_table.to(table.dtype), None, None


def fused_window_attention(
    qkv: Tensor,
    scale: Tensor,
    derive: Any,
    partition: WindowPartition | Band,
    sequential: bool = False,
) -> Tensor:
    """Compute `window_attention`. Scores are in at least fp32; second derivatives are those of the reference."""
    if not torch.is_grad_enabled():
        return _infer(qkv, scale, derive, partition, sequential)
    table = derive('table', lambda given: given)
    return _FusedWindowAttention.apply(qkv, scale, table, partition, sequential)
