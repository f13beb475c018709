"""Triton kernels of the window attention. They work on the map itself: no window is ever cut out of it.

Every program computes where the tokens of its window lie: after the cyclic shift, and with the padding that the map
would need. A token has a label, -1 for padding, and attends to the tokens of its own (`WindowPartition.regions`).

Words used in all kernels: a window is counted over the whole batch, row by row of the grid of each image; `first` is
the first token of a block, counted inside the window. `index` is a token's place in the map, counted over the batch.
The offset of a token is such that the difference of two offsets finds the bias of the pair in the table. Biases are
read from that table, of which a head needs a few kilobytes, rather than from N x N entries per head: the first-level
cache holds the one and would have to stream the other.
"""
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl

from swinv2_mm.ops.window_attention.reference import MIN_NORM

SQUARED_MIN_NORM = tl.constexpr(MIN_NORM**2)
# Logits of pairs that may not attend: finite, so that a row without a single partner gives no NaN, and so far down that
# the exponential of its distance from any real logit is exactly 0.
APART = tl.constexpr(-1e30)

# Sizes that may change from one image to the next. Without this Triton compiles anew whenever one of them becomes 1 or
# a multiple of 16.
SIZES = ['heads', 'height', 'width', 'win_h', 'win_w', 'shift_h', 'shift_w']


@triton.jit
def _tokens(first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK: tl.constexpr):
    """Index, label and offset of a block of tokens, `(BLOCK,)` each."""
    rows = tl.cdiv(height, win_h)
    cols = tl.cdiv(width, win_w)
    image = window // (rows * cols)
    cell = window % (rows * cols)
    token = first + tl.arange(0, BLOCK)
    # Tokens beyond the last repeat it, so that their index and offset stay in range; their label rules them out.
    inside = tl.minimum(token, win_h * win_w - 1)
    row = inside // win_w
    col = inside % win_w
    top = cell // cols * win_h + row  # position after the shift
    left = cell % cols * win_w + col
    wrapped_row = top >= rows * win_h - shift_h
    wrapped_col = left >= cols * win_w - shift_w
    label = 2 * wrapped_row.to(tl.int32) + wrapped_col.to(tl.int32)
    top = tl.where(wrapped_row, top - rows * win_h, top) + shift_h
    left = tl.where(wrapped_col, left - cols * win_w, left) + shift_w
    real = (token == inside) & (top < height) & (left < width)
    index = (image.to(tl.int64) * height + top) * width + left
    return index, tl.where(real, label, -1), row * (2 * win_w - 1) + col


@triton.jit
def _middle(table, head, win_h, win_w):
    """Pointer to the bias of offset zero."""
    across = 2 * win_w - 1
    return table + head * (2 * win_h - 1) * across + (win_h - 1) * across + win_w - 1


@triton.jit
def _load(
    pointer, index, label, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr
):
    """Rows of D channels, `(BLOCK, BLOCK_D)`; 0 where a token is padding and in channels beyond D."""
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def _store(pointer, index, label, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _inverse_norms(x):
    """As `reference.normalize`: 0 for vectors without a direction. `(BLOCK,)` in fp32."""
    x = x.to(tl.float32)
    squared = tl.sum(x * x, 1)
    inverse = tl.rsqrt(tl.maximum(squared, SQUARED_MIN_NORM))
    return tl.where(squared > SQUARED_MIN_NORM, inverse, 0.0)


@triton.jit
def _through_norm(grad, x, inverse):
    """From the gradient of the unit vectors to that of `x`: what is parallel to a unit vector cannot turn it."""
    unit = x.to(tl.float32) * inverse[:, None]
    return (grad - unit * tl.sum(grad * unit, 1)[:, None]) * inverse[:, None]


@triton.jit
def _products(a, a_factor, b, b_factor, PRECISION: tl.constexpr):
    """Products of the vectors of two blocks times their factors, the inverse norms: `(A, B)` in fp32.

    The vectors are multiplied as they are, and their lengths divided out afterwards: half precision is exact in such a
    product, while unit vectors would have to be rounded.
    """
    products = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return products * a_factor[:, None] * b_factor[None, :]


@triton.jit
def _logits(scaled, a_offset, a_label, b_offset, b_label, middle, MASKED: tl.constexpr):
    """Add the bias to scaled cosines, and rule out the pairs that are apart.

    The first block holds queries and the second keys; where it is the other way round, offsets change their signs.
    """
    logits = scaled + tl.load(middle + (a_offset[:, None] - b_offset[None, :]))
    if MASKED:
        # Padding attends to nothing, not even to padding.
        b_label = tl.where(b_label < 0, -2, b_label)
        logits = tl.where(a_label[:, None] == b_label[None, :], logits, APART)
    return logits


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
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output and log-sum-exp of the logits. One program per block of queries, head and window, in this order.

    qkv `(B, H, W, 3 * nH * D)`, scale `(nH,)`, table `(nH, 2 * Wh - 1, 2 * Ww - 1)`, out `(B, H, W, nH * D)`,
    lse `(B * nW, nH, N)`.
    """
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    channels = heads * D
    middle = _middle(table, head, win_h, win_w)

    q_index, q_label, q_offset = _tokens(
        first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
    )
    q = _load(qkv + head * D, q_index, q_label, 3 * channels, D, BLOCK_D, DTYPE)
    q_factor = _inverse_norms(q) * tl.load(scale + head)
    highest = tl.full((BLOCK,), APART, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, tokens, STEP):
        k_index, k_label, k_offset = _tokens(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        k = _load(qkv + channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        v = _load(qkv + 2 * channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        scaled = _products(q, q_factor, k, _inverse_norms(k), PRECISION)
        logits = _logits(scaled, q_offset, q_label, k_offset, k_label, middle, MASKED)
        # What a block that is masked throughout adds here has factor exp(APART - logit) = 0 later on.
        higher = tl.maximum(highest, tl.max(logits, 1))
        fading = tl.exp(highest - higher)
        weights = tl.exp(logits - higher[:, None])
        total = total * fading + tl.sum(weights, 1)
        mean = tl.dot(weights.to(DTYPE), v, acc=mean * fading[:, None], input_precision=PRECISION)
        highest = higher
    _store(out + head * D, q_index, q_label, channels, mean / total[:, None], D, BLOCK_D)
    token = first + tl.arange(0, BLOCK)
    lse += (window.to(tl.int64) * heads + head) * tokens
    tl.store(lse + token, highest + tl.log(total), mask=token < tokens)


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
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Product of every output vector with its gradient, `(B * nW, nH, N)`: the mean gradient of a row of weights."""
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    index, label, _ = _tokens(first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK)
    x = _load(out + head * D, index, label, heads * D, D, BLOCK_D, tl.float32)
    dx = _load(grad + head * D, index, label, heads * D, D, BLOCK_D, tl.float32)
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
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradient of qkv, and of the scale what each program adds to it: `(B * nW, nH, blocks)`.

    One program per block, head and window, as in the forward pass. The block serves as keys first, met by all queries
    of the window, then as queries, met by all keys: scores are computed twice, but no two programs write to one place.
    WIDE is the dtype in which gradients of logits are multiplied: one with the range of fp32.
    """
    tokens = win_h * win_w
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    first = program % blocks * BLOCK
    head = program // blocks % heads
    window = program // blocks // heads
    channels = heads * D
    middle = _middle(table, head, win_h, win_w)
    head_scale = tl.load(scale + head)
    q_pointer = qkv + head * D
    k_pointer = q_pointer + channels
    v_pointer = k_pointer + channels
    lse += (window.to(tl.int64) * heads + head) * tokens
    delta += (window.to(tl.int64) * heads + head) * tokens

    my_index, my_label, my_offset = _tokens(
        first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
    )
    my_k = _load(k_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_v = _load(v_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_k_inverse = _inverse_norms(my_k)
    grad_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for start in range(0, tokens, STEP):
        index, label, offset = _tokens(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        token = start + tl.arange(0, STEP)
        q = _load(q_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        do = _load(grad + head * D, index, label, channels, D, BLOCK_D, DTYPE)
        q_factor = _inverse_norms(q) * head_scale
        scaled = _products(my_k, my_k_inverse, q, q_factor, PRECISION)
        logits = _logits(scaled, -my_offset, my_label, -offset, label, middle, MASKED)
        weights = tl.exp(logits - tl.load(lse + token, mask=token < tokens, other=0.0)[None, :])
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
    grad_k = _through_norm(grad_k, my_k, my_k_inverse)
    _store(grad_qkv + channels + head * D, my_index, my_label, 3 * channels, grad_k, D, BLOCK_D)
    _store(grad_qkv + 2 * channels + head * D, my_index, my_label, 3 * channels, grad_v, D, BLOCK_D)

    my_token = first + tl.arange(0, BLOCK)
    my_q = _load(q_pointer, my_index, my_label, 3 * channels, D, BLOCK_D, DTYPE)
    my_do = _load(grad + head * D, my_index, my_label, channels, D, BLOCK_D, DTYPE)
    my_lse = tl.load(lse + my_token, mask=my_token < tokens, other=0.0)
    my_mean = tl.load(delta + my_token, mask=my_token < tokens, other=0.0)
    my_q_inverse = _inverse_norms(my_q)
    grad_q = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    of_scale = tl.zeros((BLOCK,), tl.float32)
    rest = tl.zeros((BLOCK,), tl.float32)
    mean_cosine = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tokens, STEP):
        index, label, offset = _tokens(
            start, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        k = _load(k_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        v = _load(v_pointer, index, label, 3 * channels, D, BLOCK_D, DTYPE)
        k_inverse = _inverse_norms(k)
        cosines = _products(my_q, my_q_inverse, k, k_inverse, PRECISION)
        logits = _logits(cosines * head_scale, my_offset, my_label, offset, label, middle, MASKED)
        weights = tl.exp(logits - my_lse[:, None])
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
    # The gradients of the logits of a query would sum to zero, were delta not made from outputs rounded to half
    # precision. The rest hardly shows elsewhere, but cosines of one sign would add it up here.
    tl.store(grad_scale + program, tl.sum(of_scale - rest * mean_cosine, 0))
    grad_q = _through_norm(grad_q * head_scale, my_q, my_q_inverse)
    _store(grad_qkv + head * D, my_index, my_label, 3 * channels, grad_q, D, BLOCK_D)


@triton.jit(do_not_specialize=[*SIZES, 'windows', 'windows_per_part'])
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
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    MASKED: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the bias of every pair of tokens, `(parts, nH, N, N)`: its sum over the windows of each part.

    One program per block of keys, block of queries, head and part. It adds up its windows in registers, which takes
    neither atomic operations nor an order of programs: the result is the same in every run.
    """
    tokens = win_h * win_w
    steps = tl.cdiv(tokens, STEP)
    blocks = tl.cdiv(tokens, BLOCK)
    program = tl.program_id(0)
    k_first = program % steps * STEP
    q_first = program // steps % blocks * BLOCK
    head = program // steps // blocks % heads
    part = program // steps // blocks // heads
    channels = heads * D
    middle = _middle(table, head, win_h, win_w)
    head_scale = tl.load(scale + head)
    q_token = q_first + tl.arange(0, BLOCK)
    k_token = k_first + tl.arange(0, STEP)
    sums = tl.zeros((BLOCK, STEP), tl.float32)
    begin = part * windows_per_part
    for step in range(0, tl.minimum(windows_per_part, windows - begin)):
        window = begin + step
        q_index, q_label, q_offset = _tokens(
            q_first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK
        )
        k_index, k_label, k_offset = _tokens(
            k_first, window, height, width, win_h, win_w, shift_h, shift_w, STEP
        )
        q = _load(qkv + head * D, q_index, q_label, 3 * channels, D, BLOCK_D, DTYPE)
        k = _load(qkv + channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        v = _load(qkv + 2 * channels + head * D, k_index, k_label, 3 * channels, D, BLOCK_D, DTYPE)
        do = _load(grad + head * D, q_index, q_label, channels, D, BLOCK_D, DTYPE)
        row = (window.to(tl.int64) * heads + head) * tokens + q_token
        scaled = _products(q, _inverse_norms(q) * head_scale, k, _inverse_norms(k), PRECISION)
        logits = _logits(scaled, q_offset, q_label, k_offset, k_label, middle, MASKED)
        weights = tl.exp(logits - tl.load(lse + row, mask=q_token < tokens, other=0.0)[:, None])
        grad_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        mean = tl.load(delta + row, mask=q_token < tokens, other=0.0)
        sums += weights * (grad_weights - mean[:, None])
    row = ((part.to(tl.int64) * heads + head) * tokens + q_token) * tokens
    inside = (q_token < tokens)[:, None] & (k_token < tokens)[None, :]
    tl.store(grad_bias + row[:, None] + k_token[None, :], sums, mask=inside)
