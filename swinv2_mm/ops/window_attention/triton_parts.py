"""Shared parts of the Triton kernels: positions of tokens and logits of pairs.

Every program computes the positions of the tokens of its window, including cyclic shift and padding. A token has a
label, -1 for padding, and attends to tokens of the same label (`WindowPartition.regions`).

Terms: `window` is counted over the whole batch, in row-major order per image; `first` is the first token of a block,
counted inside the window; `index` is the position of a token in the map, counted over the batch. The difference of the
offsets of two tokens is the position of their bias in the table. Biases are read from the table, a few kilobytes per
head that stay in the L1 cache, not from N x N entries.

Scale and table are multiplied by log2(e), since the hardware computes exponentials of base 2.
"""
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from swinv2_mm.ops.window_attention.reference import MIN_NORM

SQUARED_MIN_NORM = tl.constexpr(MIN_NORM**2)
# Logit of masked pairs: finite, so that fully masked rows do not give NaN, and so low that its exponential relative to
# any real logit is exactly 0.
APART = tl.constexpr(-1e30)
LN_2 = tl.constexpr(0.6931471805599453)

# Sizes that vary between images. Without this Triton recompiles whenever one of them becomes 1 or a multiple of 16.
SIZES = ['heads', 'height', 'width', 'win_h', 'win_w', 'shift_h', 'shift_w']
COUNTS = ['windows', 'windows_per_part']


@triton.jit
def cells(first, win_h, win_w, BLOCK: tl.constexpr):
    """Return row and column inside the window and whether the token exists, `(BLOCK,)` each.

    Tokens beyond the last repeat it, so that their index and offset stay in range.
    """
    token = first + tl.arange(0, BLOCK)
    inside = tl.minimum(token, win_h * win_w - 1)
    row = inside // win_w
    return row, inside - row * win_w, token == inside


@triton.jit
def places(row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w):
    """Return index in the map and label of tokens at rows and columns of a window."""
    rows = tl.cdiv(height, win_h)
    cols = tl.cdiv(width, win_w)
    image = window // (rows * cols)
    cell = window - image * (rows * cols)
    top = cell // cols * win_h + row  # position after the shift
    left = cell % cols * win_w + col
    wrapped_row = top >= rows * win_h - shift_h
    wrapped_col = left >= cols * win_w - shift_w
    label = 2 * wrapped_row.to(tl.int32) + wrapped_col.to(tl.int32)
    top = tl.where(wrapped_row, top - rows * win_h, top) + shift_h
    left = tl.where(wrapped_col, left - cols * win_w, left) + shift_w
    real = exists & (top < height) & (left < width)
    index = (image.to(tl.int64) * height + top) * width + left
    return index, tl.where(real, label, -1)


@triton.jit
def tokens_of(first, window, height, width, win_h, win_w, shift_h, shift_w, BLOCK: tl.constexpr):
    """Return index, label and offset of a block of tokens, `(BLOCK,)` each."""
    row, col, exists = cells(first, win_h, win_w, BLOCK)
    index, label = places(row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w)
    return index, label, row * (2 * win_w - 1) + col


# Whether Triton runs kernels in Python, as with TRITON_INTERPRET=1 set before its import.
INTERPRETED = tl.constexpr(isinstance(cells, InterpretedFunction))


@triton.jit
def middle_of(table, head, win_h, win_w):
    """Return a pointer to the bias of offset zero."""
    across = 2 * win_w - 1
    return table + head * (2 * win_h - 1) * across + (win_h - 1) * across + win_w - 1


@triton.jit
def load_rows(
    pointer, index, label, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr
):
    """Load rows of D channels, `(BLOCK, BLOCK_D)`; 0 for padding tokens and in channels beyond D."""
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def store_rows(pointer, index, label, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store rows of D channels, except for padding tokens; see `load_rows`."""
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def inverse_norms(x):
    """Return inverse norms, `(BLOCK,)` in fp32; 0 for zero vectors, as in `reference.normalize`."""
    x = x.to(tl.float32)
    squared = tl.sum(x * x, 1)
    inverse = tl.rsqrt(tl.maximum(squared, SQUARED_MIN_NORM))
    return tl.where(squared > SQUARED_MIN_NORM, inverse, 0.0)


@triton.jit
def through_norm(grad, x, inverse):
    """Return the gradient of `x` from that of its unit vectors, without the parallel component."""
    unit = x.to(tl.float32) * inverse[:, None]
    return (grad - unit * tl.sum(grad * unit, 1)[:, None]) * inverse[:, None]


@triton.jit
def products_of(a, a_factor, b, b_factor, PRECISION: tl.constexpr):
    """Return the products of the vectors of two blocks times their inverse norms, `(A, B)` in fp32.

    The inverse norms are applied after the product: products of half-precision inputs are exact, while unit vectors
    would have to be rounded.
    """
    products = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return products * a_factor[:, None] * b_factor[None, :]


@triton.jit
def rule_out(logits, a_label, b_label, MASKED: tl.constexpr):
    """Mask the logits of pairs with different labels, and of all pairs with padding."""
    if MASKED:
        b_label = tl.where(b_label < 0, -2, b_label)
        logits = tl.where(a_label[:, None] == b_label[None, :], logits, APART)
    return logits


@triton.jit
def biases_of(middle, q_offset, k_offset):
    """Return the biases of pairs of a query and a key, whose offsets can be broadcast against each other.

    Inline assembly, since `tl.load` would change the layout of the scores to one where sums over keys take many times
    as long. The interpreter supports `tl.load` only.
    """
    pointers = middle + (q_offset - k_offset)
    if INTERPRETED:
        biases = tl.load(pointers)
    else:
        biases = tl.inline_asm_elementwise(
            'ld.global.nc.f32 $0, [$1];', '=f,l', [pointers.to(tl.int64)], tl.float32, True, 1
        )
    return biases
