"""Triton kernel of what follows the attention: projection, norm, residual, MLP, norm, residual.

A program takes a block of tokens through all of it. What lies between the outputs of the attention and those of the
block, among it the hidden layer of four times the channels, never reaches memory.

The products of Triton have sides that are powers of two. The channels of SwinV2-T, S and L are three times such a
number: they are held in two parts, C0 channels and C1, the latter 0 where one part is enough.
"""
# mypy: disable-error-code=no-untyped-def

import triton
import triton.language as tl

HALF_ROOT_2 = tl.constexpr(0.7071067811865476)


@triton.jit
def _vector(pointer, channel):
    return tl.load(pointer + channel).to(tl.float32)[None, :]


@triton.jit
def _matrix(pointer, out_channel, in_channel, width, DTYPE: tl.constexpr):
    """A part of the weights of a linear layer, `(in, out)`."""
    return tl.load(pointer + out_channel[None, :] * width + in_channel[:, None]).to(DTYPE)


@triton.jit
def _normalize(a, b, weight, bias, c0, c1, C: tl.constexpr, C1: tl.constexpr, eps):
    """LayerNorm over the channels of both parts."""
    mean = tl.sum(a, 1)
    if C1 > 0:
        mean += tl.sum(b, 1)
    mean = mean / C
    a -= mean[:, None]
    variance = tl.sum(a * a, 1)
    if C1 > 0:
        b -= mean[:, None]
        variance += tl.sum(b * b, 1)
    factor = tl.rsqrt(variance / C + eps)[:, None]
    a = a * factor * _vector(weight, c0) + _vector(bias, c0)
    if C1 > 0:
        b = b * factor * _vector(weight, c1) + _vector(bias, c1)
    return a, b


@triton.jit
def block_tail_kernel(
    x,
    attended,
    proj_weight,
    proj_bias,
    norm1_weight,
    norm1_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    norm2_weight,
    norm2_bias,
    out,
    tokens,
    eps1,
    eps2,
    C: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    DTYPE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """x and attended `(tokens, C)`, out in the dtype of x; weights in DTYPE, biases and norms in any.

    With KEEP the residual of the MLP stays in registers; without, it waits in `out`.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < tokens)[:, None]
    at = row.to(tl.int64)[:, None] * C
    c0 = tl.arange(0, C0)
    c1 = c0
    a0 = tl.load(attended + at + c0[None, :], mask=inside, other=0.0).to(DTYPE)
    y0 = tl.dot(a0, _matrix(proj_weight, c0, c0, C, DTYPE))
    y1 = y0
    if C1 > 0:
        c1 = C0 + tl.arange(0, C1)
        a1 = tl.load(attended + at + c1[None, :], mask=inside, other=0.0).to(DTYPE)
        y0 = tl.dot(a1, _matrix(proj_weight, c0, c1, C, DTYPE), acc=y0)
        y1 = tl.dot(a0, _matrix(proj_weight, c1, c0, C, DTYPE))
        y1 = tl.dot(a1, _matrix(proj_weight, c1, c1, C, DTYPE), acc=y1)
        y1 += _vector(proj_bias, c1)
    y0 += _vector(proj_bias, c0)
    y0, y1 = _normalize(y0, y1, norm1_weight, norm1_bias, c0, c1, C, C1, eps1)
    y0 += tl.load(x + at + c0[None, :], mask=inside, other=0.0).to(tl.float32)
    x0 = y0.to(DTYPE)
    x1 = x0
    sum0 = tl.zeros((BLOCK, C0), tl.float32)
    sum1 = sum0
    if C1 > 0:
        y1 += tl.load(x + at + c1[None, :], mask=inside, other=0.0).to(tl.float32)
        x1 = y1.to(DTYPE)
        sum1 = tl.zeros((BLOCK, C1), tl.float32)
    if not KEEP:
        tl.store(out + at + c0[None, :], y0.to(out.dtype.element_ty), mask=inside)
        if C1 > 0:
            tl.store(out + at + c1[None, :], y1.to(out.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # who reads a number below may not be who wrote it
    for start in range(0, HIDDEN, STEP):
        n = start + tl.arange(0, STEP)
        hidden = tl.dot(x0, _matrix(fc1_weight, n, c0, C, DTYPE))
        if C1 > 0:
            hidden = tl.dot(x1, _matrix(fc1_weight, n, c1, C, DTYPE), acc=hidden)
        hidden += _vector(fc1_bias, n)
        hidden = (0.5 * hidden * (1 + tl.erf(hidden * HALF_ROOT_2))).to(DTYPE)
        sum0 = tl.dot(hidden, _matrix(fc2_weight, c0, n, HIDDEN, DTYPE), acc=sum0)
        if C1 > 0:
            sum1 = tl.dot(hidden, _matrix(fc2_weight, c1, n, HIDDEN, DTYPE), acc=sum1)
    sum0 += _vector(fc2_bias, c0)
    if C1 > 0:
        sum1 += _vector(fc2_bias, c1)
    sum0, sum1 = _normalize(sum0, sum1, norm2_weight, norm2_bias, c0, c1, C, C1, eps2)
    if not KEEP:
        y0 = tl.load(out + at + c0[None, :], mask=inside, other=0.0).to(tl.float32)
        if C1 > 0:
            y1 = tl.load(out + at + c1[None, :], mask=inside, other=0.0).to(tl.float32)
        tl.debug_barrier()
    tl.store(out + at + c0[None, :], (sum0 + y0).to(out.dtype.element_ty), mask=inside)
    if C1 > 0:
        tl.store(out + at + c1[None, :], (sum1 + y1).to(out.dtype.element_ty), mask=inside)
