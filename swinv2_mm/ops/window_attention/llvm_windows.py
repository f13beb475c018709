"""Tasks, scratch memory, token addresses and biases of the CPU kernels.

N tokens of a window, P tokens padded to whole vectors, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite.ir import Type, Value

from swinv2_mm.ops.llvm.emitter import FLOAT, INT, POINTER, Emitter

ROWS = 4  # queries processed together
LINE = 64  # bytes of a cache line
ARGUMENTS = (
    '*qkv',  # (pixels, 3, nH, D)
    '*out',  # (pixels, nH, D)
    '*scale',  # (nH,)
    '*table',  # (nH, pitch): reversed, and padded by a vector
    '*tasks',  # (tasks, TASK)
    '*counters',  # counters of tasks and of threads, both 0
    '*scratch',  # (threads, scratch_size)
    'scratch_size',
    'tasks_count',
    'channels',  # nH * D
    'pitch',
    'height',  # window of the table
    'width',
)  # fmt: skip
# Fields of a task: identifier of its bias, head, height and width of its windows, address of the first pixels of the
# windows, number of windows, address of the pixels of a window relative to its first.
TASK = 7


def scratch_size(tokens: int, lanes: int, head_dim: int, backward: bool) -> int:
    """Return the size of a thread's scratch memory in a pass, in numbers; see `begin` of the emitters."""
    padded = -(-tokens // lanes) * lanes
    plane, rows, pairs = head_dim * (padded + lanes), ROWS * padded, tokens * padded + lanes
    if backward:
        return 4 * plane + 3 * rows + 2 * pairs + padded
    return plane + rows + pairs + padded + ROWS * head_dim


class WindowEmitter(Emitter):
    """Emit code that reads a task and addresses the tokens of its windows; see `Emitter` for the arguments.

    `head_dim`, the channels of a head, is a multiple of `lanes`. `kind` is that of the numbers of maps.
    """

    def __init__(
        self, name: str, lanes: int, head_dim: int, arguments: Sequence[str], kind: Type = FLOAT
    ) -> None:
        super().__init__(name, lanes, arguments)
        self.head_dim, self.kind = head_dim, kind
        self.steps = [self.integer(start) for start in range(0, head_dim, lanes)]
        # Leave registers for operands.
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
        self.known = self.builder.alloca(INT)  # identifier of the expanded bias
        self.builder.store(self.integer(-1), self.known)

    def _int_at(self, argument: str, index: int) -> Value:
        return self.builder.gep(self.arguments[argument], [self.integer(index)], source_etype=INT)

    def begin(self, task: Value) -> None:
        """Read a task, and partition the scratch memory."""
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
        # The pitch is not a power of two, which would map rows to few cache sets.
        self.plane_pitch = builder.add(self.padded, self.integer(self.lanes))
        self.scale = self.load(self.arguments['scale'], self.head)
        self.plane = self.muls(self.plane_pitch, self.integer(self.head_dim))
        self.rows = self.muls(self.padded, self.integer(ROWS))
        self.pairs = builder.add(self.muls(self.tokens, self.padded), self.integer(self.lanes))
        # The buffers of a thread: transposed unit keys, their inverse norms, scores, biases.
        self.bias = self.scratch
        self.keys = self.at(self.bias, self.pairs)
        self.key_factors = self.at(self.keys, self.plane)
        self.scores = self.at(self.key_factors, self.padded)
        self.free = self.at(self.scores, self.rows)
        self.lay_out_bias()

    def window(self, index: Value) -> None:
        """Compute the addresses of the task's head in the first token of a window."""
        pixel, channels = self.load_int(self.origins, index), self.arguments['channels']
        start = self.muls(self.head, self.integer(self.head_dim))
        self.q = self.in_map(self.arguments['qkv'], self.muls(pixel, self.triple), start)
        self.k, self.v = self.in_map(self.q, channels), self.in_map(self.q, channels, channels)
        self.place = self.builder.add(self.muls(pixel, channels), start)
        self.place_qkv = self.builder.add(self.muls(pixel, self.triple), start)

    def prefetch_window(self, index: Value) -> None:
        """Prefetch queries, keys and values of a window, at most the last one of the task."""
        last = self.builder.sub(self.count, self.integer(1))
        pixel = self.load_int(self.origins, self.smaller_int(index, last))
        start = self.muls(self.head, self.integer(self.head_dim))
        first = self.in_map(self.arguments['qkv'], self.muls(pixel, self.triple), start)
        with self.loop(self.integer(0), self.tokens) as (token, _):
            q = self.token(first, token, self.triple)
            k = self.in_map(q, self.arguments['channels'])
            for vectors in (q, k, self.in_map(k, self.arguments['channels'])):
                for line in range(0, self.head_dim, LINE // (4 if self.kind == FLOAT else 2)):
                    self.prefetch(self.in_map(vectors, self.integer(line)))

    def token(self, base: Value, index: Value, pitch: Value) -> Value:
        """Return the address of a token of the window, in a map with `pitch` numbers per pixel."""
        return self.in_map(base, self.muls(self.load_int(self.offsets, index), pitch))

    def in_map(self, base: Value, *indices: Value) -> Value:
        """Return the address of a number of a map; see `at`."""
        return self.at(base, *indices, kind=self.kind)

    def load_channels(self, token: Value) -> list[Value]:
        """Return the D channels of a token of a map."""
        return [self.load_vector(token, step, kind=self.kind) for step in self.steps]

    def segments(self, visit: Callable[[Value, Value, Value, Value], None]) -> None:
        """Visit the vectors of biases of a query that are also consecutive in the table.

        `visit` gets the query, the position in the row of its keys, the position in the table of the head, and how many
        numbers of the vector are valid: at least one, possibly more than the vector has.
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
        """Fill `bias`, (N, P), unless it is cached; columns without a key are minus infinity."""
        builder = self.builder
        identity = builder.add(self.muls(self.identity, self.integer(1 << 32)), self.head)
        table = self.at(self.arguments['table'], self.muls(self.head, self.arguments['pitch']))

        def copy(query: Value, key: Value, source: Value, _: Value) -> None:
            # The following segments overwrite excess numbers.
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
