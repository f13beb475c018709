"""Triton kernels of the window attention for windows of any size. They read the map directly.

A program iterates over the keys, or the queries, of its window. See `triton_parts` for shared parts of the kernels, and
`triton_tile_kernels` for windows that fit into one block.
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
    inverse_norms,
    load_rows,
    middle_of,
    products_of,
    rule_out,
    store_rows,
    through_norm,
    tokens_of,
)


@triton.jit(do_not_specialize=SIZES)
def attention_kernel(
    qkv,
    scale,
    table,
    out,
    lse,
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
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the output and the log-sum-exp of the logits. One program per block of queries, head and window.

    qkv `(B, H, W, 3 * nH * D)`, scale `(nH,)`, table `(nH, 2 * Wh - 1, 2 * Ww - 1)`, out `(B, H, W, nH * D)`,
    lse `(B * nW, nH, N)`.
    """
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    channels = heads * D
    middle = middle_of(table, head, win_h, win_w)

    q_index, q_label, q_offset = tokens_of(
        first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
    )
    q = load_rows(qkv + head * D, q_index, q_label, 3 * channels, D, BLOCK_D, DTYPE)
    q_factor = inverse_norms(q) * tl.load(scale + head)
    highest = tl.full((BLOCK,), APART, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, tokens, STEP):
        k_index, k_label, k_offset = tokens_of(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        k = load_rows(qkv + channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        v = load_rows(
            qkv + 2 * channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE
        )
        logits = products_of(q, q_factor, k, inverse_norms(k), PRECISION)
        logits += biases_of(middle, q_offset[:, None], k_offset[None, :])
        logits = rule_out(logits, q_label, k_label, MASKED)
        # The sum of a fully masked block is later multiplied by exp(APART - logit) = 0.
        higher = tl.maximum(highest, tl.max(logits, 1))
        fading = tl.exp2(highest - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * fading + tl.sum(weights, 1)
        mean = tl.dot(weights.to(DTYPE), v, acc=mean * fading[:, None], input_precision=PRECISION)
        highest = higher
    store_rows(out + head * D, q_index, q_label, channels, mean / total[:, None], D, BLOCK_D)
    token = first + tl.arange(0, BLOCK)
    lse += (window.to(tl.int64) * heads + head) * tokens
    tl.store(lse + token, highest + tl.log2(total), mask=token < tokens)


@triton.jit(do_not_specialize=SIZES)
def delta_kernel(
    out,
    grad,
    delta,
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
):
    """Compute the product of output vectors and gradients, `(B * nW, nH, N)`: the mean gradient of weights by row."""
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    index, label, _ = tokens_of(first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK)
    x = load_rows(out + head * D, index, label, heads * D, D, BLOCK_D, tl.float32)
    dx = load_rows(grad + head * D, index, label, heads * D, D, BLOCK_D, tl.float32)
    token = first + tl.arange(0, BLOCK)
    delta += (window.to(tl.int64) * heads + head) * tokens
    tl.store(delta + token, tl.sum(x * dx, 1), mask=token < tokens)


@triton.jit(do_not_specialize=SIZES)
def qkv_grad_kernel(
    qkv,
    scale,
    table,
    lse,
    delta,
    grad,
    grad_qkv,
    grad_scale,
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
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Compute the gradient of qkv, and per program that of the scale, `(B * nW, nH, blocks)`.

    One program per block, head and window, as in the forward pass. The block is used first as keys, with all queries of
    the window, then as queries, with all keys: scores are computed twice, but every program writes its own outputs.
    WIDE is the dtype for products of logit gradients, with the range of fp32.
    """
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    channels = heads * D
    middle = middle_of(table, head, win_h, win_w)
    head_scale = tl.load(scale + head)
    q_pointer = qkv + head * D
    k_pointer = q_pointer + channels
    v_pointer = k_pointer + channels
    lse += (window.to(tl.int64) * heads + head) * tokens
    delta += (window.to(tl.int64) * heads + head) * tokens

    my_index, my_label, my_offset = tokens_of(
        first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
    )
    my_k = load_rows(k_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_v = load_rows(v_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_k_inverse = inverse_norms(my_k)
    grad_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, tokens, STEP):
        index, label, offset = tokens_of(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        token = start + tl.arange(0, STEP)
        q = load_rows(q_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        do = load_rows(grad + head * D, index, label, channels, D, BLOCK_D, DTYPE)
        q_factor = inverse_norms(q) * head_scale
        logits = products_of(my_k, my_k_inverse, q, q_factor, PRECISION)
        logits += biases_of(middle, offset[None, :], my_offset[:, None])
        logits = rule_out(logits, my_label, label, MASKED)
        weights = tl.exp2(logits - tl.load(lse + token, mask=token < tokens, other=0.0)[None, :])
        grad_v = tl.dot(weights.to(DTYPE), do, acc=grad_v, input_precision=PRECISION)
        grad_weights = tl.dot(my_v, tl.trans(do), input_precision=PRECISION)
        mean = tl.load(delta + token, mask=token < tokens, other=0.0)
        grad_logits = weights * (grad_weights - mean[None, :])
        grad_k = tl.dot(
            (grad_logits * q_factor[None, :]).to(WIDE),
            q.to(WIDE),
            acc=grad_k,
            input_precision=PRECISION,
        )
    grad_k = through_norm(grad_k * LN_2, my_k, my_k_inverse)
    store_rows(grad_qkv + channels + head * D, my_index, my_label, 3 * channels, grad_k, D, BLOCK_D)
    store_rows(
        grad_qkv + 2 * channels + head * D, my_index, my_label, 3 * channels, grad_v, D, BLOCK_D
    )

    my_token = first + tl.arange(0, BLOCK)
    my_q = load_rows(q_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_do = load_rows(grad + head * D, my_index, my_label, channels, D, BLOCK_D, DTYPE)
    my_lse = tl.load(lse + my_token, mask=my_token < tokens, other=0.0)
    my_mean = tl.load(delta + my_token, mask=my_token < tokens, other=0.0)
    my_q_inverse = inverse_norms(my_q)
    grad_q = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    of_scale = tl.zeros((BLOCK,), tl.float32)
    rest = tl.zeros((BLOCK,), tl.float32)
    mean_cosine = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tokens, STEP):
        index, label, offset = tokens_of(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        k = load_rows(k_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        v = load_rows(v_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        k_inverse = inverse_norms(k)
        cosines = products_of(my_q, my_q_inverse, k, k_inverse, PRECISION)
        logits = cosines * head_scale
        logits += biases_of(middle, my_offset[:, None], offset[None, :])
        logits = rule_out(logits, my_label, label, MASKED)
        weights = tl.exp2(logits - my_lse[:, None])
        grad_weights = tl.dot(my_do, tl.trans(v), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - my_mean[:, None])
        of_scale += tl.sum(grad_logits * cosines, 1)
        rest += tl.sum(grad_logits, 1)
        mean_cosine += tl.sum(weights * cosines, 1)
        grad_q = tl.dot(
            (grad_logits * k_inverse[None, :]).to(WIDE),
            k.to(WIDE),
            acc=grad_q,
            input_precision=PRECISION,
        )
    # The gradients of the logits of a query should sum to zero, but delta is computed from outputs in half precision.
    # The error would accumulate in the gradient of the scale.
    tl.store(grad_scale + program, tl.sum(of_scale - rest * mean_cosine, 0))
    grad_q = through_norm(grad_q * (head_scale * LN_2), my_q, my_q_inverse)
    store_rows(grad_qkv + head * D, my_index, my_label, 3 * channels, grad_q, D, BLOCK_D)


@triton.jit(do_not_specialize=[*SIZES, *COUNTS])
def bias_grad_kernel(
    qkv,
    scale,
    table,
    lse,
    delta,
    grad,
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
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the bias gradients of all pairs of tokens, `(parts, nH, N, N)`, summed over the windows of each part.

    One program per block of keys, block of queries, head and part. It sums over its windows in registers, without
    atomic operations, so the result is deterministic.
    """
    if WIN > 0:
        win_h = WIN
        win_w = WIN
    tokens = win_h * win_w
    steps = tl.cdiv(tokens, STEP)
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    k_first = program % steps * STEP
    q_first = program // steps % blocks * BLOCK
    head = program // steps // blocks % heads
    part = program // steps // blocks // heads
    channels = heads * D
    middle = middle_of(table, head, win_h, win_w)
    head_scale = tl.load(scale + head)
    q_token = q_first + tl.arange(0, BLOCK)
    k_token = k_first + tl.arange(0, STEP)
    sums = tl.zeros((BLOCK, STEP), tl.float32)
    begin = part * windows_per_part
    for step in range(0, tl.minimum(windows_per_part, windows - begin)):
        window = begin + step
        q_index, q_label, q_offset = tokens_of(
            q_first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
        )
        k_index, k_label, k_offset = tokens_of(
            k_first, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        q = load_rows(qkv + head * D, q_index, q_label, 3 * channels, D, BLOCK_D, DTYPE)
        k = load_rows(qkv + channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        v = load_rows(
            qkv + 2 * channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE
        )
        do = load_rows(grad + head * D, q_index, q_label, channels, D, BLOCK_D, DTYPE)
        row = (window.to(tl.int64) * heads + head) * tokens + q_token
        logits = products_of(q, inverse_norms(q) * head_scale, k, inverse_norms(k), PRECISION)
        logits += biases_of(middle, q_offset[:, None], k_offset[None, :])
        logits = rule_out(logits, q_label, k_label, MASKED)
        weights = tl.exp2(logits - tl.load(lse + row, mask=q_token < tokens, other=0.0)[:, None])
        grad_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        mean = tl.load(delta + row, mask=q_token < tokens, other=0.0)
        sums += weights * (grad_weights - mean[:, None])
    row = ((part.to(tl.int64) * heads + head) * tokens + q_token) * tokens
    inside = (q_token < tokens)[:, None] & (k_token < tokens)[None, :]
    tl.store(grad_bias + row[:, None] + k_token[None, :], sums, mask=inside)
