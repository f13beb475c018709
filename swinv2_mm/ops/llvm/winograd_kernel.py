"""Transforms of tiles for convolutions by Winograd's algorithm, and a transposition, in LLVM IR."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llvmlite.ir import Value

from swinv2_mm.ops.llvm.emitter import Emitter
from swinv2_mm.ops.llvm.runtime import compile_function

STEP = 4  # pixels from a tile to the next one
TILES = 4  # of a task
ARGUMENTS = (
    '*map',  # (images, height, width, channels)
    '*tiles',  # (n * n, count, channels), for transformed tiles of n x n
    '*outside',  # (channels,): zeros to read for pixels outside of the map, or memory to write them to
    '*bias',  # (channels,), of `to_map`
    '*counter',  # 0
    'first', 'count', 'rows', 'columns',  # the first tile, their number, rows and columns of tiles per image
    'height', 'width', 'channels',
)  # fmt: skip
ROWS = 64  # of a task of the transposition
TRANSPOSE_ARGUMENTS = (
    '*x', '*out', '*counter',  # (batch, rows, columns), (batch, columns, rows), 0
    'batch', 'rows', 'columns',
    'x_matrix', 'x_row', 'out_matrix', 'out_row',  # strides
)  # fmt: skip
Matrix = tuple[tuple[float, ...], ...]


def _combine(emit: Emitter, row: Sequence[float], values: Sequence[Value]) -> Value:
    """Return the sum of `row[i] * values[i]`."""
    found: Value | None = None
    for factor, value in zip(row, values):
        if factor and found is None:
            found = value if factor == 1 else emit.builder.fmul(value, emit.splat(factor))
        elif factor == 1:
            found = emit.builder.fadd(found, value)
        elif factor == -1:
            found = emit.builder.fsub(found, value)
        elif factor:
            found = emit.fma(emit.splat(factor), value, found)
    return found


def _transform(emit: Emitter, matrix: Matrix, values: Sequence[Value]) -> list[Value]:
    """Return matrix @ values @ matrix.T of a square of vectors, in row-major order."""
    size = len(matrix[0])
    columns = [[_combine(emit, row, values[i::size]) for row in matrix] for i in range(size)]
    return [
        _combine(emit, other, [column[i] for column in columns])
        for i in range(len(matrix))
        for other in matrix
    ]


@functools.cache
def transform(matrix: Matrix, offset: int, to_map: bool, lanes: int) -> int:
    """Compile a transform with `ARGUMENTS` and return its address; channels are a multiple of `lanes`.

    Args:
        matrix: Multiplied to both sides of a tile.
        offset: Of the first pixel of a tile of the map from a multiple of `STEP`.
        to_map: Whether to read transformed tiles and write the map.
        lanes: Numbers per vector.
    """
    emit = Emitter('transform', lanes, ARGUMENTS)
    builder, zero = emit.builder, emit.integer(0)
    names = 'first', 'count', 'rows', 'columns', 'height', 'width', 'channels'
    first, count, rows, columns, height, width, channels = (emit.arguments[key] for key in names)
    size = len(matrix) if to_map else len(matrix[0])
    parts = (len(matrix[0]) if to_map else len(matrix)) ** 2
    pitch = emit.muls(count, channels)
    tasks = builder.sdiv(builder.add(count, emit.integer(TILES - 1)), emit.integer(TILES))

    def positions(index: Value, limit: Value) -> list[tuple[Value, Value]]:
        """Return the pixels of a tile along an axis, and whether they are in the map."""
        start = builder.add(emit.muls(index, emit.integer(STEP)), emit.integer(offset))
        pixels = [builder.add(start, emit.integer(i)) for i in range(size)]
        return [
            (pixel, builder.and_(builder.icmp_signed('>=', pixel, zero), builder.icmp_signed('<', pixel, limit)))
            for pixel in pixels
        ]  # fmt: skip

    with emit.tasks(emit.arguments['counter'], tasks) as task:
        start = emit.muls(task, emit.integer(TILES))
        stop = emit.smaller_int(builder.add(start, emit.integer(TILES)), count)
        with emit.loop(start, stop) as (tile, _):
            number = builder.add(first, tile)
            row = builder.sdiv(number, columns)
            image = emit.muls(builder.sdiv(row, rows), height)
            pixels = []
            for y, inside in positions(builder.srem(row, rows), height):
                line = emit.muls(builder.add(image, y), width)
                for x, within in positions(builder.srem(number, columns), width):
                    place = emit.muls(builder.add(line, x), channels)
                    pixel = emit.at(emit.arguments['map'], place)
                    is_pixel = builder.and_(inside, within)
                    pixels.append(builder.select(is_pixel, pixel, emit.arguments['outside']))
            place = emit.at(emit.arguments['tiles'], emit.muls(tile, channels))
            squares = [emit.at(place, emit.muls(pitch, emit.integer(i))) for i in range(parts)]
            sources, targets = (squares, pixels) if to_map else (pixels, squares)
            with emit.loop(zero, channels, lanes) as (channel, _):
                values = [emit.load_vector(source, channel) for source in sources]
                found = _transform(emit, matrix, values)
                if to_map:
                    bias = emit.load_vector(emit.arguments['bias'], channel)
                    found = [builder.fadd(value, bias) for value in found]
                for value, target in zip(found, targets):
                    emit.store(value, target, channel)
    return compile_function(emit.module)


@functools.cache
def transpose(lanes: int) -> int:
    """Compile a transposition with `TRANSPOSE_ARGUMENTS` and return its address; axes have at least `lanes` numbers."""
    emit = Emitter('transpose', lanes, TRANSPOSE_ARGUMENTS)
    builder, zero = emit.builder, emit.integer(0)
    rows, columns = emit.arguments['rows'], emit.arguments['columns']
    blocks = builder.sdiv(builder.add(rows, emit.integer(ROWS - 1)), emit.integer(ROWS))
    last_row, last_column = (builder.sub(size, emit.integer(lanes)) for size in (rows, columns))
    with emit.tasks(emit.arguments['counter'], emit.muls(blocks, emit.arguments['batch'])) as task:
        matrix = builder.sdiv(task, blocks)
        x, out = (
            emit.at(emit.arguments[name], emit.muls(matrix, emit.arguments[f'{name}_matrix']))
            for name in ('x', 'out')
        )
        x_row, out_row = emit.arguments['x_row'], emit.arguments['out_row']
        start = emit.muls(builder.srem(task, blocks), emit.integer(ROWS))
        stop = emit.smaller_int(builder.add(start, emit.integer(ROWS)), rows)
        with emit.loop(zero, columns, lanes) as (column, _):
            column = emit.smaller_int(column, last_column)  # the last square overlaps
            with emit.loop(start, stop, lanes) as (row, _):
                row = emit.smaller_int(row, last_row)
                lines = [builder.add(row, emit.integer(i)) for i in range(lanes)]
                values = [emit.load_vector(x, emit.muls(line, x_row), column) for line in lines]
                for i, value in enumerate(emit.transpose(values)):
                    line = builder.add(column, emit.integer(i))
                    emit.store(value, out, emit.muls(line, out_row), row)
    return compile_function(emit.module)
