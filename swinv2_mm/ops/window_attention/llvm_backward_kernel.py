"""Backward pass of the window attention in LLVM IR; see `llvm_kernel` for the terms.

The scores of a few queries are recomputed. The gradients of keys, values and biases are summed in thread-local memory,
and written at the end of a window or, for biases, of a task.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llvmlite.ir import Value

from swinv2_mm.ops.llvm.emitter import DOUBLE
from swinv2_mm.ops.llvm.runtime import compile_function
from swinv2_mm.ops.window_attention.llvm_kernel import AttentionEmitter
from swinv2_mm.ops.window_attention.llvm_windows import ARGUMENTS, ROWS

BACKWARD_ARGUMENTS = (
    *ARGUMENTS,
    '*grad',  # as out
    '*grad_qkv',
    '*grad_scale',  # (tasks,) in fp64
    '*grad_table',  # (tasks, pitch) of zeros
)


class BackwardEmitter(AttentionEmitter):
    """Parts of the backward pass."""

    def begin(self, task: Value) -> None:
        """Read a task, partition the scratch memory, and clear the sum of the bias gradients."""
        super().begin(task)
        self.values = self.free  # transposed
        self.score_grads = self.at(self.values, self.plane)  # of the queries taken
        # The same, times the inverse norms of keys.
        self.scaled_grads = self.at(self.score_grads, self.rows)
        self.key_grads = self.at(self.scaled_grads, self.rows)  # (N, D) each, in two planes
        self.value_grads = self.at(self.key_grads, self.plane)
        self.bias_grads = self.at(self.value_grads, self.plane)
        self.clear(self.bias_grads, self.pairs)

    def clear(self, base: Value, count: Value) -> None:
        with self.loop(self.integer(0), count, self.lanes) as (index, _):
            self.store(self.splat(0.0), base, index)

    def grads_of_scores(
        self, inverses: Sequence[Value], out_grads: Sequence[Value], first: Value
    ) -> None:
        """Turn `scores` into weights, fill `score_grads` and `scaled_grads`, and add to the bias gradients.

        `inverses` is the result of `softmax`, `out_grads` are addresses of gradients of outputs, `first` is a query.
        """
        builder, zero = self.builder, self.number(0.0)
        there = [
            builder.icmp_signed('<', builder.add(first, self.integer(row)), self.tokens)
            for row in range(ROWS)
        ]
        factors = [
            self.splat(builder.select(real, inverse, zero))
            for real, inverse in zip(there, inverses)
        ]

        def weigh(row: int, place: Value, product: Value, sums: Value) -> Value:
            scores = self.row_of(self.scores, row)
            weights = builder.fmul(self.load_vector(scores, place), factors[row])
            self.store(weights, scores, place)
            self.store(product, self.row_of(self.score_grads, row), place)
            return self.fma(weights, product, sums)

        sums = self.products(out_grads, self.values, weigh, self.splat(0.0))
        for row in range(ROWS):
            mean = self.splat(self.sum(sums[row]))
            scores, grads, scaled = (
                self.row_of(buffer, row)
                for buffer in (self.scores, self.score_grads, self.scaled_grads)
            )
            biases = self.at(self.bias_grads, self.muls(self.queries[row], self.padded))
            with self.loop(self.integer(0), self.padded, self.lanes) as (place, _):
                grad = builder.fsub(self.load_vector(grads, place), mean)
                grad = builder.fmul(grad, self.load_vector(scores, place))
                self.store(grad, grads, place)
                self.store(
                    builder.fmul(grad, self.load_vector(self.key_factors, place)), scaled, place
                )
                self.store(builder.fadd(self.load_vector(biases, place), grad), biases, place)

    def spread(self, weights: Value, vectors: Sequence[Sequence[Value]], target: Value) -> None:
        """Add the product of transposed weights `(ROWS, P)` and `ROWS` vectors of D channels to `target`, `(N, D)`."""
        for first in range(0, ROWS, self.together):
            rows = range(first, first + self.together)
            bases = [self.row_of(weights, row) for row in rows]
            with self.loop(self.integer(0), self.tokens) as (index, _):
                token = self.at(target, self.muls(index, self.integer(self.head_dim)))
                sums = [self.splat(0.0)] * len(self.steps)
                for row, base in zip(rows, bases):
                    weight = self.splat(self.load(base, index))
                    sums = [
                        self.fma(weight, vector, sum_) for vector, sum_ in zip(vectors[row], sums)
                    ]
                for step, value in zip(self.steps, sums):
                    self.store(self.builder.fadd(self.load_vector(token, step), value), token, step)

    def store_channels(self, values: Sequence[Value], token: Value) -> None:
        for step, value in zip(self.steps, values):
            self.store(value, token, step)

    def scaled(self, values: Sequence[Value], factor: Value) -> list[Value]:
        factors = self.splat(factor)
        return [self.builder.fmul(value, factors) for value in values]

    def through_norm(
        self, grads: Sequence[Value], units: Sequence[Value], factor: Value
    ) -> tuple[list[Value], Value]:
        """Compute the gradient of a vector from that of its unit vector, and the component parallel to it."""
        products = self.splat(0.0)
        for grad, unit in zip(grads, units):
            products = self.fma(grad, unit, products)
        along = self.sum(products)
        minus = self.splat(self.builder.fneg(along))
        across = [self.fma(unit, minus, grad) for grad, unit in zip(grads, units)]
        return self.scaled(across, factor), along

    def write_keys_and_values(self, grad_k: Value, grad_v: Value) -> None:
        """Write the gradients of the keys and values of a window to the map."""
        with self.loop(self.integer(0), self.tokens) as (index, _):
            factor = self.load(self.key_factors, index)
            units = self.scaled(self.load_channels(self.token(self.k, index, self.triple)), factor)
            place = self.muls(index, self.integer(self.head_dim))
            grads = self.load_channels(self.at(self.key_grads, place))
            keys, _ = self.through_norm(grads, units, factor)
            self.store_channels(keys, self.token(grad_k, index, self.triple))
            values = self.load_channels(self.at(self.value_grads, place))
            self.store_channels(values, self.token(grad_v, index, self.triple))

    def fold_bias_grads(self, table: Value) -> None:
        """Sum the bias gradients to those of the table."""

        def add(query: Value, key: Value, source: Value, count: Value) -> None:
            target = self.at(table, source)
            grads = self.load_vector(self.bias_grads, self.muls(query, self.padded), key)
            grads = self.builder.select(self.lanes_from(count), self.splat(0.0), grads)
            self.store(self.builder.fadd(self.load_vector(target), grads), target)

        self.segments(add)


@functools.cache
def build(lanes: int, head_dim: int) -> int:
    """Compile the backward pass with `BACKWARD_ARGUMENTS` (`out` is not used) and return its address."""
    emit = BackwardEmitter('attention_backward', lanes, head_dim, BACKWARD_ARGUMENTS)
    builder, arguments = emit.builder, emit.arguments
    channels = arguments['channels']
    grad_scale = builder.alloca(DOUBLE)
    with emit.tasks(arguments['counters'], arguments['tasks_count']) as task:
        emit.begin(task)
        builder.store(DOUBLE(0.0), grad_scale)
        with emit.loop(emit.integer(0), emit.count) as (index, _):
            emit.window(index)
            emit.prefetch_window(builder.add(index, emit.integer(1)))
            emit.transpose_keys()
            emit.transpose_tokens(emit.v, emit.values)
            emit.clear(emit.key_grads, emit.muls(emit.plane, emit.integer(2)))
            grad = emit.at(arguments['grad'], emit.place)
            grad_q = emit.at(arguments['grad_qkv'], emit.place_qkv)
            with emit.loop(emit.integer(0), emit.tokens, ROWS) as (first, _):
                emit.take_queries(first)
                rows = [emit.token(grad, query, channels) for query in emit.queries]
                emit.grads_of_scores(emit.softmax(), rows, first)
                emit.spread(
                    emit.scores, [emit.load_channels(row) for row in rows], emit.value_grads
                )
                queries = [
                    emit.scaled(emit.load_channels(row), factor)
                    for row, factor in zip(emit.query_rows, emit.query_factors)
                ]
                emit.spread(emit.score_grads, queries, emit.key_grads)

                def write(row: int, sums: list[Value]) -> None:
                    queries = emit.load_channels(emit.query_rows[row])
                    units = emit.scaled(queries, emit.query_inverses[row])
                    grads, along = emit.through_norm(sums, units, emit.query_factors[row])
                    emit.store_channels(grads, emit.token(grad_q, emit.queries[row], emit.triple))
                    total = builder.fadd(
                        builder.load(grad_scale, typ=DOUBLE), builder.fpext(along, DOUBLE)
                    )
                    builder.store(total, grad_scale)

                emit.weigh(emit.scaled_grads, emit.k, write)
            emit.write_keys_and_values(
                emit.at(grad_q, channels), emit.at(grad_q, channels, channels)
            )
        place = builder.gep(arguments['grad_scale'], [task], source_etype=DOUBLE)
        builder.store(builder.load(grad_scale, typ=DOUBLE), place)
        emit.fold_bias_grads(emit.at(arguments['grad_table'], emit.muls(task, arguments['pitch'])))
    return compile_function(emit.module)
