"""What the Triton kernels have in common: where tokens lie, and the logits of pairs.

Every program computes where the tokens of its window lie: after the cyclic shift, and with the padding that the map
would need. A token has a label, -1 for padding, and attends to the tokens of its own (`WindowPartition.regions`).

Words used in all kernels: a window is counted over the whole batch, row by row of the grid of each image; `first` is
the first token of a block, counted inside the window. `index` is a token's place in the map, counted over the batch.
The offset of a token is such that the difference of two offsets finds the bias of the pair in the table. Biases are
read from that table, of which a head needs a few kilobytes, rather than from N x N entries per head: the first-level
cache holds the one and would have to stream the other.

Scale and table come multiplied by log2(e): the hardware has the exponential of base 2.
"""
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from swinv2_mm.ops.window_attention.reference import MIN_NORM

SQUARED_MIN_NORM = tl.constexpr(MIN_NORM**2)
# Logits of pairs that may not attend: finite, so that a row without a single partner gives no NaN, and so far down that
# the exponential of its distance from any real logit is exactly 0.
APART = tl.constexpr(-1e30)
LN_2 = tl.constexpr(0.6931471805599453)

# Sizes that may change from one image to the next. Without this Triton compiles anew whenever one of them becomes 1 or
# a multiple of 16.
SIZES = ['heads', 'height', 'width', 'win_h', 'win_w', 'shift_h', 'shift_w']
COUNTS = ['windows', 'windows_per_part']


@triton.jit
def cells(first, win_h, win_w, BLOCK: tl.constexpr):
    """Row and column inside the window of a block of tokens, and whether there are so many: `(BLOCK,)` each.

    Tokens beyond the last repeat it, so that their index and offset stay in range.
    """
    token = first + tl.arange(0, BLOCK)
    inside = tl.minimum(token, win_h * win_w - 1)
    row = inside // win_w
    return row, inside - row * win_w, token == inside


@triton.jit
def places(row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w):
    """Index in the map and label of tokens at rows and columns of a window."""
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
    """Index, label and offset of a block of tokens, `(BLOCK,)` each."""
    row, col, exists = cells(first, win_h, win_w, BLOCK)
    index, label = places(row, col, exists, window, height, width, win_h, win_w, shift_h, shift_w)
    return index, label, row * (2 * win_w - 1) + col


@triton.jit
def middle_of(table, head, win_h, win_w):
    """Pointer to the bias of offset zero."""
    across = 2 * win_w - 1
    return table + head * (2 * win_h - 1) * across + (win_h - 1) * across + win_w - 1


@triton.jit
def load_rows(
    pointer, index, label, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr
):
    """Rows of D channels, `(BLOCK, BLOCK_D)`; 0 where a token is padding and in channels beyond D."""
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    return tl.load(at, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def store_rows(pointer, index, label, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Inverse of `load_rows`; nothing is written for padding."""
    channel = tl.arange(0, BLOCK_D)
    at = pointer + index[:, None] * stride + channel[None, :]
    mask = (label >= 0)[:, None] & (channel < D)[None, :]
    tl.store(at, rows.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def inverse_norms(x):
    """As `reference.normalize`: 0 for vectors without a direction. `(BLOCK,)` in fp32."""
    x = x.to(tl.float32)
    squared = tl.sum(x * x, 1)
    inverse = tl.rsqrt(tl.maximum(squared, SQUARED_MIN_NORM))
    return tl.where(squared > SQUARED_MIN_NORM, inverse, 0.0)


@triton.jit
def through_norm(grad, x, inverse):
    """From the gradient of the unit vectors to that of `x`: what is parallel to a unit vector cannot turn it."""
    unit = x.to(tl.float32) * inverse[:, None]
    return (grad - unit * tl.sum(grad * unit, 1)[:, None]) * inverse[:, None]


@triton.jit
def products_of(a, a_factor, b, b_factor, PRECISION: tl.constexpr):
    """Products of the vectors of two blocks times their factors, the inverse norms: `(A, B)` in fp32.

    The vectors are multiplied as they are, and their lengths divided out afterwards: half precision is exact in such a
    product, while unit vectors would have to be rounded.
    """
    products = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    return products * a_factor[:, None] * b_factor[None, :]


@triton.jit
def rule_out(logits, a_label, b_label, MASKED: tl.constexpr):
    """Move the logits of pairs that are apart out of reach. Padding attends to nothing, not even to padding."""
    if MASKED:
        b_label = tl.where(b_label < 0, -2, b_label)
        logits = tl.where(a_label[:, None] == b_label[None, :], logits, APART)
    return logits


@triton.jit
def biases_of(middle, q_offset, k_offset, GATHER: tl.constexpr):
    """Biases of the pairs of a query and a key, whose offsets can be broadcast against each other.

    With GATHER by an instruction of the hardware. Triton would give the tensor that `tl.load` returns a layout of its
    own and move the scores into it, where sums over keys take many times as long. The interpreter has `tl.load` only.
    """
    pointers = middle + (q_offset - k_offset)
    if GATHER:
        biases = tl.inline_asm_elementwise(
            'ld.global.nc.f32 $0, [$1];', '=f,l', [pointers.to(tl.int64)], tl.float32, True, 1
        )
    else:
        biases = tl.load(pointers)
    return biases


def is_interpreted() -> bool:
    """Return whether Triton runs kernels in Python, as with TRITON_INTERPRET=1 set before its import."""
    return isinstance(cells, InterpretedFunction)
