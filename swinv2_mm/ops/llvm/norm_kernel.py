"""Residual addition of a normalised branch in LLVM IR."""

from __future__ import annotations

import functools

from llvmlite.ir import Value

from swinv2_mm.ops.llvm.emitter import BFLOAT, FLOAT, Emitter
from swinv2_mm.ops.llvm.runtime import compile_function

ROWS = 64  # of a task
ARGUMENTS = (
    '*x', '*y', '*out',  # (rows, channels)
    '*weight', '*bias', '*eps',  # (channels,), (channels,), one number
    '*counter',  # 0
    'rows', 'channels',
)  # fmt: skip


@functools.cache
def add_norm(lanes: int, x_in_bf16: bool = False, y_in_bf16: bool = False) -> int:
    """Compile out = x + LayerNorm(y) with `ARGUMENTS` and return its address; channels are a multiple of `lanes`.

    It computes in fp32; `out` is in the precision of `x`.
    """
    x_kind, y_kind = (BFLOAT if in_bf16 else FLOAT for in_bf16 in (x_in_bf16, y_in_bf16))
    emit = Emitter('add_norm', lanes, ARGUMENTS)
    builder, arguments, zero = emit.builder, emit.arguments, emit.integer(0)
    rows, channels = arguments['rows'], arguments['channels']
    count = builder.sdiv(builder.add(rows, emit.integer(ROWS - 1)), emit.integer(ROWS))
    share = builder.fdiv(emit.number(1.0), builder.sitofp(channels, FLOAT))
    eps = emit.load(arguments['eps'], zero)

    def total(row: Value, mean: Value | None) -> Value:
        """Return the sum of a row, or of its squared differences from the mean."""
        with emit.loop(zero, channels, lanes, [emit.splat(0.0)]) as (index, sums):
            value = emit.load_vector(row, index, kind=y_kind)
            if mean is None:
                sums[0] = builder.fadd(sums[0], value)
            else:
                value = builder.fsub(value, mean)
                sums[0] = emit.fma(value, value, sums[0])
        return builder.fmul(emit.sum(sums[0]), share)

    with emit.tasks(arguments['counter'], count) as task:
        start = emit.muls(task, emit.integer(ROWS))
        stop = emit.smaller_int(builder.add(start, emit.integer(ROWS)), rows)
        with emit.loop(start, stop) as (index, _):
            place = emit.muls(index, channels)
            x, out = (emit.at(arguments[name], place, kind=x_kind) for name in ('x', 'out'))
            y = emit.at(arguments['y'], place, kind=y_kind)
            mean = emit.splat(total(y, None))
            deviation = emit.sqrt(builder.fadd(total(y, mean), eps))
            factor = emit.splat(builder.fdiv(emit.number(1.0), deviation))
            with emit.loop(zero, channels, lanes) as (channel, _):
                value = builder.fsub(emit.load_vector(y, channel, kind=y_kind), mean)
                value = builder.fmul(value, factor)
                weight = emit.load_vector(arguments['weight'], channel)
                value = emit.fma(value, weight, emit.load_vector(arguments['bias'], channel))
                value = builder.fadd(value, emit.load_vector(x, channel, kind=x_kind))
                emit.store(value, out, channel, kind=x_kind)
    return compile_function(emit.module)
