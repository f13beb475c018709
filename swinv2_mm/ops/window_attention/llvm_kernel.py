"""Forward pass of the window attention in LLVM IR, and shared parts of the backward pass.

A task is a number of windows of one size, for one head. Queries, keys and values are read from the map, without
copying windows. Keys are normalised while they are transposed; then a few queries at a time are multiplied with all
keys of their window. Scores exist for these few queries only. The bias of all pairs of a window is expanded from the
table once per head, in thread-local memory.

N tokens of a window, P tokens padded to whole vectors, D channels of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llvmlite.ir import Value

from swinv2_mm.ops.llvm.emitter import BFLOAT, FLOAT
from swinv2_mm.ops.llvm.runtime import compile_function
from swinv2_mm.ops.window_attention.llvm_windows import ARGUMENTS, ROWS, WindowEmitter
from swinv2_mm.ops.window_attention.reference import MIN_NORM

BLOCK = 32  # tokens per partial sum, to reduce rounding errors


class AttentionEmitter(WindowEmitter):
    """Shared parts of both passes; see `WindowEmitter` for the arguments."""

    def factors(self, squared: Value) -> Value:
        """Compute inverse norms from squared norms, see `reference.normalize`."""
        constant = self.number if squared.type == FLOAT else self.splat
        length = self.sqrt(squared)
        inverse = self.builder.fdiv(constant(1.0), length)
        short = self.builder.fcmp_ordered('<=', length, constant(MIN_NORM))
        return self.builder.select(short, constant(0.0), inverse)

    def transpose_keys(self) -> None:
        """Fill `keys` and `key_factors`; columns without a key repeat the last one."""

        def normalize(place: Value, channels: list[Value]) -> list[Value]:
            squared = self.splat(0.0)
            for channel in channels:
                squared = self.fma(channel, channel, squared)
            factors = self.factors(squared)
            self.store(factors, self.key_factors, place)
            return [self.builder.fmul(channel, factors) for channel in channels]

        self.transpose_tokens(self.k, self.keys, normalize)

    def transpose_tokens(
        self,
        source: Value,
        target: Value,
        change: Callable[[Value, list[Value]], list[Value]] = lambda _, channels: channels,
    ) -> None:
        """Write the channels of all tokens from `source`, a map like qkv, to `target`, `(D, plane_pitch)`.

        `change` turns the position in the rows of `target` and the channels into the values to write.
        """
        with self.loop(self.integer(0), self.tokens, self.lanes) as (place, _):
            ids = [
                self.smaller_int(self.builder.add(place, self.integer(lane)), self.last)
                for lane in range(self.lanes)
            ]
            tokens = [self.token(source, index, self.triple) for index in ids]
            channels = []
            for step in self.steps:
                rows = [self.load_vector(token, step, kind=self.kind) for token in tokens]
                channels += self.transpose(rows)
            for index, channel in enumerate(change(place, channels)):
                self.store(channel, target, self.muls(self.plane_pitch, self.integer(index)), place)

    def take_queries(self, first: Value) -> None:
        """Take the next `ROWS` queries of the window, in fp32; the last one is repeated if there are fewer."""
        self.queries = [
            self.smaller_int(self.builder.add(first, self.integer(row)), self.last)
            for row in range(ROWS)
        ]
        self.query_rows = [self.token(self.q, query, self.triple) for query in self.queries]
        self.query_inverses, self.query_factors = list[Value](), list[Value]()
        for row, place in enumerate(self.query_rows):
            squared = self.splat(0.0)
            for step, channels in zip(self.steps, self.load_channels(place)):
                squared = self.fma(channels, channels, squared)
                if self.kind != FLOAT:
                    self.store(channels, self.free, self.integer(row * self.head_dim), step)
            inverse = self.factors(self.sum(squared))
            self.query_inverses.append(inverse)
            self.query_factors.append(self.builder.fmul(inverse, self.scale))
        if self.kind != FLOAT:
            places = range(0, ROWS * self.head_dim, self.head_dim)
            self.query_rows = [self.at(self.free, self.integer(place)) for place in places]

    def products(
        self,
        rows: Sequence[Value],
        planes: Value,
        then: Callable[[int, Value, Value, Value], Value],
        start: Value,
    ) -> list[Value]:
        """Compute the products of `ROWS` tokens with all tokens of the window, `planes` `(D, plane_pitch)`.

        `then` gets the row, the position in it, a vector of products and its previous result in this row, at first
        `start`. The last results are returned, one per row.
        """

        def blocks(first: Value, stop: Value, vectors: int, given: Sequence[Value]) -> list[Value]:
            with self.loop(first, stop, vectors * self.lanes, given) as (column, state):
                zeros = [self.splat(0.0)] * (ROWS * vectors)
                with self.loop(self.integer(0), self.integer(self.head_dim), 8, zeros) as (
                    channel,
                    sums,
                ):
                    for step in range(8):
                        index = self.builder.add(channel, self.integer(step))
                        plane = self.at(planes, self.muls(self.plane_pitch, index), column)
                        others = [
                            self.load_vector(plane, self.integer(vector * self.lanes))
                            for vector in range(vectors)
                        ]
                        for row in range(ROWS):
                            number = self.splat(self.load(rows[row], index))
                            for vector, other in enumerate(others):
                                place = row * vectors + vector
                                sums[place] = self.fma(number, other, sums[place])
                for row in range(ROWS):
                    for vector in range(vectors):
                        place = self.builder.add(column, self.integer(vector * self.lanes))
                        state[row] = then(row, place, sums[row * vectors + vector], state[row])
            return state

        width = self.integer(self.vectors * self.lanes)
        whole = self.muls(self.builder.sdiv(self.padded, width), width)
        given = blocks(self.integer(0), whole, self.vectors, [start] * ROWS)
        return blocks(whole, self.padded, 1, given)

    def row_of(self, base: Value, row: int) -> Value:
        """Return the address of a row of a buffer `(ROWS, P)`."""
        return self.at(base, self.muls(self.padded, self.integer(row)))

    def softmax(self) -> list[Value]:
        """Fill `scores` with the exponentials of the scores of the queries; return the inverse sums by row."""

        def score(row: int, place: Value, product: Value, largest: Value) -> Value:
            bias = self.load_vector(self.bias, self.muls(self.queries[row], self.padded), place)
            value = self.fma(product, self.splat(self.query_factors[row]), bias)
            self.store(value, self.row_of(self.scores, row), place)
            return self.larger(value, largest)

        inverses = []
        largest = self.products(self.query_rows, self.keys, score, self.splat(-3.0e38))
        for row in range(ROWS):
            scores, top = self.row_of(self.scores, row), self.splat(self.max(largest[row]))
            with self.loop(self.integer(0), self.padded, self.lanes, [self.splat(0.0)]) as (
                place,
                sums,
            ):
                value = self.exp(self.builder.fsub(self.load_vector(scores, place), top))
                self.store(value, scores, place)
                sums[0] = self.builder.fadd(sums[0], value)
            inverses.append(self.builder.fdiv(self.number(1.0), self.sum(sums[0])))
        return inverses

    def weigh(
        self, weights: Value, tokens: Value, then: Callable[[int, list[Value]], None]
    ) -> None:
        """Compute the sums of the tokens of a window weighted by `(ROWS, P)`; `tokens` is the first, in a map like qkv.

        `then` is called with a row, in reverse order, and its D sums.
        """
        size = len(self.steps)
        for first in reversed(range(0, ROWS, self.together)):
            rows = [self.row_of(weights, first + row) for row in range(self.together)]
            zeros = [self.splat(0.0)] * (self.together * size)
            with self.loop(self.integer(0), self.tokens, BLOCK, zeros) as (start, sums):
                stop = self.smaller_int(self.builder.add(start, self.integer(BLOCK)), self.tokens)
                with self.loop(start, stop, carry=zeros) as (index, parts):
                    token = self.token(tokens, index, self.triple)
                    channels = self.load_channels(token)
                    for row in range(self.together):
                        weight = self.splat(self.load(rows[row], index))
                        for step in range(size):
                            place = row * size + step
                            parts[place] = self.fma(weight, channels[step], parts[place])
                sums[:] = [self.builder.fadd(sum_, part) for sum_, part in zip(sums, parts)]
            for row in reversed(range(self.together)):
                then(first + row, sums[row * size : (row + 1) * size])


@functools.cache
def build(lanes: int, head_dim: int, in_bf16: bool = False) -> int:
    """Compile the forward pass with `ARGUMENTS` and return its address; `in_bf16` is about qkv and out."""
    kind = BFLOAT if in_bf16 else FLOAT
    emit = AttentionEmitter('attention', lanes, head_dim, ARGUMENTS, kind)
    channels = emit.arguments['channels']
    with emit.tasks(emit.arguments['counters'], emit.arguments['tasks_count']) as task:
        emit.begin(task)
        with emit.loop(emit.integer(0), emit.count) as (index, _):
            emit.window(index)
            emit.prefetch_window(emit.builder.add(index, emit.integer(1)))
            emit.transpose_keys()
            out = emit.in_map(emit.arguments['out'], emit.place)
            with emit.loop(emit.integer(0), emit.tokens, ROWS) as (first, _):
                emit.take_queries(first)
                inverses = emit.softmax()

                def write(row: int, sums: list[Value]) -> None:
                    target = emit.token(out, emit.queries[row], channels)
                    for step, value in zip(emit.steps, sums):
                        value = emit.builder.fmul(value, emit.splat(inverses[row]))
                        emit.store(value, target, step, kind=kind)

                emit.weigh(emit.scores, emit.v, write)
    return compile_function(emit.module)
