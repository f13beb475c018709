"""The attention of windows as a function in LLVM's language, and what its backward pass has in common with it.

A task is some windows of one size, for one head. Queries, keys and values are read from where they are in the map, so
windows are never cut out. Keys are normalised while they are transposed; then a few queries at a time meet all keys of
their window. Scores exist for these few queries only. The bias between the tokens of a window is laid out once per
head, from the table, in memory that a thread has to itself.

N tokens of a window, P of them when filled up to whole vectors, D channels of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llvmlite.ir import Value

from swinv2_mm.ops.llvm.emitter import FLOAT, INT, POINTER, Emitter
from swinv2_mm.ops.llvm.runtime import compile_function
from swinv2_mm.ops.window_attention.reference import MIN_NORM

ROWS = 4  # queries that are taken together
LINE = 16  # numbers of a cache line
BLOCK = 32  # tokens that are added up by themselves first, for the sake of rounding
ARGUMENTS = (
    '*qkv',  # (pixels, 3, nH, D)
    '*out',  # (pixels, nH, D)
    '*scale',  # (nH,)
    '*table',  # (nH, pitch): backwards, and filled up by a vector
    '*tasks',  # (tasks, TASK)
    '*counters',  # of tasks and of threads; both 0
    '*scratch',  # (threads, scratch_size)
    'scratch_size',
    'tasks_count',
    'channels',  # nH * D
    'pitch',
    'height',  # of the window that the table is for
    'width',
)  # fmt: skip
# Of a task: an identity of its bias, head, height and width of its windows, address of the windows' first pixels, their
# number, address of the pixels of a window relative to its first.
TASK = 7


def scratch_size(tokens: int, lanes: int, head_dim: int) -> int:
    """Numbers that a thread of the forward pass needs for windows of so many tokens; see `AttentionEmitter.begin`."""
    return sum(buffer_sizes(tokens, lanes, head_dim)) + padded_tokens(tokens, lanes)


def padded_tokens(tokens: int, lanes: int) -> int:
    """Filled up to whole vectors."""
    return -(-tokens // lanes) * lanes


def buffer_sizes(tokens: int, lanes: int, head_dim: int) -> tuple[int, int, int]:
    """Numbers of a buffer with all tokens by channel, with `ROWS` rows of scores, and with all pairs of tokens."""
    padded = padded_tokens(tokens, lanes)
    return head_dim * (padded + lanes), ROWS * padded, tokens * padded + lanes


class AttentionEmitter(Emitter):
    """What both passes have in common.

    Args:
        name: Of the function.
        lanes: Numbers of a vector.
        head_dim: A multiple of them.
        arguments: Of the function.
    """

    def __init__(self, name: str, lanes: int, head_dim: int, arguments: Sequence[str]) -> None:
        super().__init__(name, lanes, arguments)
        self.head_dim = head_dim
        self.steps = [self.integer(start) for start in range(0, head_dim, lanes)]
        # As many accumulators as leave registers for operands.
        registers = 16 if lanes == 16 else 8
        self.together = max(
            size for size in (1, 2, 4) if size == 1 or size * len(self.steps) <= registers
        )
        self.vectors = registers // ROWS
        self.triple = self.muls(self.integer(3), self.arguments['channels'])
        thread = self.builder.atomic_rmw(
            'add', self._int_at('counters', 1), self.integer(1), 'monotonic'
        )
        self.scratch = self.at(
            self.arguments['scratch'], self.muls(thread, self.arguments['scratch_size'])
        )
        self.known = self.builder.alloca(INT)  # which bias is laid out
        self.builder.store(self.integer(-1), self.known)

    def _int_at(self, argument: str, index: int) -> Value:
        return self.builder.gep(self.arguments[argument], [self.integer(index)], source_etype=INT)

    def begin(self, task: Value) -> None:
        """Read a task, and divide the scratch memory."""
        builder = self.builder
        row = builder.gep(
            self.arguments['tasks'], [self.muls(task, self.integer(TASK))], source_etype=INT
        )
        kinds = (INT, INT, INT, INT, POINTER, INT, POINTER)
        fields = [self.load_int(row, self.integer(index), kind) for index, kind in enumerate(kinds)]
        self.identity, self.head, self.height, self.width = fields[:4]
        self.origins, self.count, self.offsets = fields[4:]
        self.tokens = self.muls(self.height, self.width)
        self.last = builder.sub(self.tokens, self.integer(1))
        self.padded = builder.and_(
            builder.add(self.tokens, self.integer(self.lanes - 1)), self.integer(-self.lanes)
        )
        # Rows of planes are not a power of two apart: they would share few lines of the cache.
        self.plane_pitch = builder.add(self.padded, self.integer(self.lanes))
        self.scale = self.load(self.arguments['scale'], self.head)
        self.plane = self.muls(self.plane_pitch, self.integer(self.head_dim))
        self.rows = self.muls(self.padded, self.integer(ROWS))
        self.pairs = builder.add(self.muls(self.tokens, self.padded), self.integer(self.lanes))
        # The buffers of a thread: transposed unit keys, what made them unit vectors, scores, biases.
        self.bias = self.scratch
        self.keys = self.at(self.bias, self.pairs)
        self.key_factors = self.at(self.keys, self.plane)
        self.scores = self.at(self.key_factors, self.padded)
        self.free = self.at(self.scores, self.rows)
        self.lay_out_bias()

    def window(self, index: Value) -> None:
        """The addresses of the task's head in the first token of a window."""
        pixel, channels = self.load_int(self.origins, index), self.arguments['channels']
        start = self.muls(self.head, self.integer(self.head_dim))
        self.q = self.at(self.arguments['qkv'], self.muls(pixel, self.triple), start)
        self.k, self.v = self.at(self.q, channels), self.at(self.q, channels, channels)
        self.place = self.builder.add(self.muls(pixel, channels), start)
        self.place_qkv = self.builder.add(self.muls(pixel, self.triple), start)

    def prefetch_window(self, index: Value) -> None:
        """Have queries, keys and values of a window brought to the cache, at most of the task's last one."""
        last = self.builder.sub(self.count, self.integer(1))
        pixel = self.load_int(self.origins, self.smaller_int(index, last))
        start = self.muls(self.head, self.integer(self.head_dim))
        first = self.at(self.arguments['qkv'], self.muls(pixel, self.triple), start)
        with self.loop(self.integer(0), self.tokens) as (token, _):
            q = self.token(first, token, self.triple)
            k = self.at(q, self.arguments['channels'])
            for vectors in (q, k, self.at(k, self.arguments['channels'])):
                for line in range(0, self.head_dim, LINE):
                    self.prefetch(self.at(vectors, self.integer(line)))

    def token(self, base: Value, index: Value, pitch: Value) -> Value:
        """The address of a token of the window, in a map with so many numbers per pixel."""
        return self.at(base, self.muls(self.load_int(self.offsets, index), pitch))

    def segments(self, visit: Callable[[Value, Value, Value, Value], None]) -> None:
        """Visit the vectors in which biases of a query lie side by side in the table, too.

        Args:
            visit: Takes the query, the place in the row of its keys, the place in the head's table, and how many
                numbers of the vector are meant: at least one, maybe more than all.
        """
        builder, one = self.builder, self.integer(1)
        pitch = builder.sub(self.muls(self.integer(2), self.arguments['width']), one)
        with (
            self.loop(self.integer(0), self.height) as (y, _),
            self.loop(self.integer(0), self.width) as (x, _),
        ):
            query = builder.add(self.muls(y, self.width), x)
            with self.loop(self.integer(0), self.height) as (row, _):
                down = builder.sub(builder.add(row, self.arguments['height']), builder.add(y, one))
                across = builder.sub(self.arguments['width'], builder.add(x, one))
                source = builder.add(self.muls(down, pitch), across)
                with self.loop(self.integer(0), self.width, self.lanes) as (col, _):
                    key = builder.add(self.muls(row, self.width), col)
                    visit(query, key, builder.add(source, col), builder.sub(self.width, col))

    def lay_out_bias(self) -> None:
        """Fill `bias`, (N, P), unless it is there already; minus infinity in the columns without a key."""
        builder = self.builder
        identity = builder.add(self.muls(self.identity, self.integer(1 << 32)), self.head)
        table = self.at(self.arguments['table'], self.muls(self.head, self.arguments['pitch']))

        def copy(query: Value, key: Value, source: Value, _: Value) -> None:
            # What this writes too much, the following segments write over.
            target = self.at(self.bias, self.muls(query, self.padded), key)
            self.store(self.load_vector(table, source), target)

        with builder.if_then(
            builder.icmp_signed('!=', builder.load(self.known, typ=INT), identity)
        ):
            builder.store(identity, self.known)
            self.segments(copy)
            start = builder.sub(self.padded, self.integer(self.lanes))
            beyond = self.lanes_from(builder.sub(self.tokens, start))
            with self.loop(self.integer(0), self.tokens) as (query, _):
                place = self.at(self.bias, self.muls(query, self.padded), start)
                value = builder.select(beyond, self.splat(float('-inf')), self.load_vector(place))
                self.store(value, place)

    def factors(self, squared: Value) -> Value:
        """From squared lengths of vectors to what makes them unit vectors, see `reference.normalize`."""
        constant = self.number if squared.type == FLOAT else self.splat
        length = self.sqrt(squared)
        inverse = self.builder.fdiv(constant(1.0), length)
        short = self.builder.fcmp_ordered('<=', length, constant(MIN_NORM))
        return self.builder.select(short, constant(0.0), inverse)

    def transpose_keys(self) -> None:
        """Fill `keys` and `key_factors`; columns without a key are like the last one."""

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
        """Write the channels of all tokens to `target`, `(D, plane_pitch)`.

        Args:
            source: First token of the window, in a map like qkv.
            target: Where to.
            change: Takes the place in rows of `target` and what is to be written there, and gives what is written.
        """
        with self.loop(self.integer(0), self.tokens, self.lanes) as (place, _):
            ids = [
                self.smaller_int(self.builder.add(place, self.integer(lane)), self.last)
                for lane in range(self.lanes)
            ]
            tokens = [self.token(source, index, self.triple) for index in ids]
            channels = []
            for step in self.steps:
                channels += self.transpose([self.load_vector(token, step) for token in tokens])
            for index, channel in enumerate(change(place, channels)):
                self.store(channel, target, self.muls(self.plane_pitch, self.integer(index)), place)

    def take_queries(self, first: Value) -> None:
        """The next `ROWS` queries of the window: the last one over and over where there are not as many."""
        self.queries = [
            self.smaller_int(self.builder.add(first, self.integer(row)), self.last)
            for row in range(ROWS)
        ]
        self.query_rows = [self.token(self.q, query, self.triple) for query in self.queries]
        self.query_inverses, self.query_factors = list[Value](), list[Value]()
        for row in self.query_rows:
            squared = self.splat(0.0)
            for step in self.steps:
                channels = self.load_vector(row, step)
                squared = self.fma(channels, channels, squared)
            inverse = self.factors(self.sum(squared))
            self.query_inverses.append(inverse)
            self.query_factors.append(self.builder.fmul(inverse, self.scale))

    def products(
        self,
        rows: Sequence[Value],
        planes: Value,
        then: Callable[[int, Value, Value, Value], Value],
        start: Value,
    ) -> list[Value]:
        """Products of a few tokens with all tokens of the window.

        Args:
            rows: Addresses of `ROWS` tokens.
            planes: The others, `(D, plane_pitch)`.
            then: Takes the row, the place in it, a vector of products and what it gave last in this row.
            start: What it gets first.

        Returns:
            What it gave last, by row.
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
        """Of a buffer `(ROWS, P)`."""
        return self.at(base, self.muls(self.padded, self.integer(row)))

    def softmax(self) -> list[Value]:
        """Fill `scores` with exponentials of what the queries taken score; one over their sums, by row."""

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
        """Sum up the tokens of the window under the weights `(ROWS, P)`.

        Args:
            weights: By query and token.
            tokens: The first token, in a map like qkv.
            then: Takes a row, the last one first, and the D sums.
        """
        size = len(self.steps)
        for first in reversed(range(0, ROWS, self.together)):
            rows = [self.row_of(weights, first + row) for row in range(self.together)]
            zeros = [self.splat(0.0)] * (self.together * size)
            with self.loop(self.integer(0), self.tokens, BLOCK, zeros) as (start, sums):
                stop = self.smaller_int(self.builder.add(start, self.integer(BLOCK)), self.tokens)
                with self.loop(start, stop, carry=zeros) as (index, parts):
                    token = self.token(tokens, index, self.triple)
                    channels = [self.load_vector(token, step) for step in self.steps]
                    for row in range(self.together):
                        weight = self.splat(self.load(rows[row], index))
                        for step in range(size):
                            place = row * size + step
                            parts[place] = self.fma(weight, channels[step], parts[place])
                sums[:] = [self.builder.fadd(sum_, part) for sum_, part in zip(sums, parts)]
            for row in reversed(range(self.together)):
                then(first + row, sums[row * size : (row + 1) * size])


@functools.cache
def build(lanes: int, head_dim: int) -> int:
    """The address of the forward pass, with `ARGUMENTS`."""
    emit = AttentionEmitter('attention', lanes, head_dim, ARGUMENTS)
    channels = emit.arguments['channels']
    with emit.tasks(emit.arguments['counters'], emit.arguments['tasks_count']) as task:
        emit.begin(task)
        with emit.loop(emit.integer(0), emit.count) as (index, _):
            emit.window(index)
            emit.prefetch_window(emit.builder.add(index, emit.integer(1)))
            emit.transpose_keys()
            out = emit.at(emit.arguments['out'], emit.place)
            with emit.loop(emit.integer(0), emit.tokens, ROWS) as (first, _):
                emit.take_queries(first)
                inverses = emit.softmax()

                def write(row: int, sums: list[Value]) -> None:
                    target = emit.token(out, emit.queries[row], channels)
                    for step, value in zip(emit.steps, sums):
                        value = emit.builder.fmul(value, emit.splat(inverses[row]))
                        emit.store(value, target, step)

                emit.weigh(emit.scores, emit.v, write)
    return compile_function(emit.module)
