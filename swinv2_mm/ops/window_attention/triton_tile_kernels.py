"""Triton kernels for windows that fit into one block of tokens, such as the usual 8 x 8.

A program processes several windows of one head. Each score is computed once per pass. The biases of all pairs and the
sums of their gradients over the windows stay in registers.
"""
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl

from swinv2_mm.ops.window_attention.triton_parts import (
    APART,
    COUNTS,
    LN_2,
    SIZES,
    biases_of,
    cells,
    inverse_norms,
    load_rows,
    middle_of,
    places,
    products_of,
    rule_out,
    store_rows,
    through_norm,
)


@triton.jit(do_not_specialize=[*SIZES, *COUNTS])
def tile_attention_kernel(
    qkv,
    scale,
    table,
    out,
    lse,
    windows,
    windows_per_part,
    heads,
    height,
    width,
    win_h,
    win_w,
    shift_h,
    shift_w,
    WIN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the same as `attention_kernel`. One program per head and part of the windows."""
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    head = tl.program_id(0) % heads
    begin = tl.program_id(0) // heads * windows_per_part
    channels = heads * D
    row, col, exists = cells(0, win_h, win_w, BLOCK)
    offset = row * (2 * win_w - 1) + col
    middle = middle_of(table, head, win_h, win_w)
    bias = biases_of(middle, offset[:, None], offset[None, :])
    head_scale = tl.load(scale + head)
    token = tl.arange(0, BLOCK)
    q_pointer = qkv + head * D
    for step in range(0, tl.minimum(windows_per_part, windows - begin)):
        window = begin + step
        index, label = places(
            row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w
        )
        q = load_rows(q_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        k = load_rows(q_pointer + channels, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        v = load_rows(q_pointer + 2 * channels, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        scaled = products_of(q, inverse_norms(q) * head_scale, k, inverse_norms(k), PRECISION)
        logits = rule_out(scaled + bias, label, label, MASKED)
        highest = tl.max(logits, 1)
        weights = tl.exp2(logits - highest[:, None])
        total = tl.sum(weights, 1)
        mean = tl.dot(weights.to(DTYPE), v, input_precision=PRECISION) / total[:, None]
        store_rows(out + head * D, index, label, channels, mean, D, BLOCK_D)
        rows = lse + (window.to(tl.int64) * heads + head) * tokens
        tl.store(rows + token, highest + tl.log2(total), mask=token < tokens)


@triton.jit(do_not_specialize=[*SIZES, *COUNTS])
def tile_grad_kernel(
    qkv,
    scale,
    table,
    lse,
    grad,
    grad_qkv,
    grad_scale,
    grad_bias,
    windows,
    windows_per_part,
    heads,
    height,
    width,
    win_h,
    win_w,
    shift_h,
    shift_w,
    WIN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute the gradient of qkv, and the sums per part for scale `(parts, nH)` and bias `(parts, nH, N, N)`.

    One program per head and part of the windows, as in the forward pass; see `qkv_grad_kernel` for WIDE.
    """
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    head = tl.program_id(0) % heads
    begin = tl.program_id(0) // heads * windows_per_part
    channels = heads * D
    row, col, exists = cells(0, win_h, win_w, BLOCK)
    offset = row * (2 * win_w - 1) + col
    middle = middle_of(table, head, win_h, win_w)
    bias = biases_of(middle, offset[:, None], offset[None, :])
    head_scale = tl.load(scale + head)
    token = tl.arange(0, BLOCK)
    q_pointer = qkv + head * D
    bias_sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    scale_sums = tl.zeros((BLOCK,), tl.float32)
    for step in range(0, tl.minimum(windows_per_part, windows - begin)):
        window = begin + step
        index, label = places(
            row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w
        )
        q = load_rows(q_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        k = load_rows(q_pointer + channels, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        v = load_rows(q_pointer + 2 * channels, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        do = load_rows(grad + head * D, index, label, channels, D, BLOCK_D, DTYPE)
        rows = lse + (window.to(tl.int64) * heads + head) * tokens
        row_lse = tl.load(rows + token, mask=token < tokens, other=APART)
        q_inverse = inverse_norms(q)
        k_inverse = inverse_norms(k)
        cosines = products_of(q, q_inverse, k, k_inverse, PRECISION)
        logits = rule_out(cosines * head_scale + bias, label, label, MASKED)
        weights = tl.exp2(logits - row_lse[:, None])
        grad_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        mean = tl.sum(weights * grad_weights, 1)
        grad_logits = weights * (grad_weights - mean[:, None])
        bias_sums += grad_logits
        # The gradients of the logits of a query sum to zero except for rounding errors, which would accumulate in the
        # gradient of the scale.
        rest = tl.sum(grad_logits, 1) * tl.sum(weights * cosines, 1)
        scale_sums += tl.sum(grad_logits * cosines, 1) - rest
        grad_v = tl.dot(tl.trans(weights.to(DTYPE)), do, input_precision=PRECISION)
        of_keys = tl.trans((grad_logits * (q_inverse * head_scale)[:, None]).to(WIDE))
        grad_k = tl.dot(of_keys, q.to(WIDE), input_precision=PRECISION)
        of_queries = (grad_logits * k_inverse[None, :]).to(WIDE)
        grad_q = tl.dot(of_queries, k.to(WIDE), input_precision=PRECISION)
        grad_q = through_norm(grad_q * (head_scale * LN_2), q, q_inverse)
        grad_k = through_norm(grad_k * LN_2, k, k_inverse)
        at = grad_qkv + head * D
        store_rows(at, index, label, 3 * channels, grad_q, D, BLOCK_D)
        store_rows(at + channels, index, label, 3 * channels, grad_k, D, BLOCK_D)
        store_rows(at + 2 * channels, index, label, 3 * channels, grad_v, D, BLOCK_D)
    tl.store(grad_scale + tl.program_id(0), tl.sum(scale_sums, 0))
    line = (tl.program_id(0).to(tl.int64) * tokens + token) * tokens
    inside = (token < tokens)[:, None] & (token < tokens)[None, :]
    tl.store(grad_bias + line[:, None] + token[None, :], bias_sums, mask=inside)
