"""A thin layer over llvmlite's IR builder: fp32 vectors, loops and operations of the attention.

Numbers in memory are `FLOAT`, or `BFLOAT` (bf16), from which vectors are converted as they are loaded and stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir
from llvmlite.ir import Value

FLOAT, DOUBLE, INT, INT32 = ir.FloatType(), ir.DoubleType(), ir.IntType(64), ir.IntType(32)
BFLOAT = ir.IntType(16)  # the upper half of a FLOAT
POINTER = ir.PointerType()

# Cephes' polynomial of (exp(x) - 1 - x) / x ** 2 on [-ln(2) / 2, ln(2) / 2], and ln(2) in two parts.
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_LN2 = (0.693359375, -2.12194440e-4)


class Emitter:
    """Builder of a function `void name(int64 *arguments)`, with `lanes` numbers per vector.

    `arguments` are the names in order; addresses have a leading star.
    """

    def __init__(self, name: str, lanes: int, arguments: Sequence[str]) -> None:
        self.module = ir.Module(name)
        self.lanes = lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.integers = ir.VectorType(INT32, lanes)
        self.function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [POINTER]), name=name
        )
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.arguments = {
            key.lstrip('*'): self.load_int(
                self.function.args[0], self.integer(index), POINTER if key.startswith('*') else INT
            )
            for index, key in enumerate(arguments)
        }

    # Constants

    def integer(self, value: int) -> Value:
        return ir.Constant(INT, value)

    def number(self, value: float) -> Value:
        return ir.Constant(FLOAT, value)

    def splat(self, value: Value | float) -> Value:
        """Return a vector of equal numbers."""
        if isinstance(value, (int, float)):
            return ir.Constant(self.vector, [float(value)] * self.lanes)
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(
            first, nothing, ir.Constant(self.integers, [0] * self.lanes)
        )

    def splat_int(self, value: int) -> Value:
        return ir.Constant(self.integers, [value] * self.lanes)

    # Memory; indices count numbers

    def at(self, base: Value, *indices: Value, kind: ir.Type = FLOAT) -> Value:
        """Return the address of the number at the sum of the indices."""
        for index in indices:
            base = self.builder.gep(base, [index], source_etype=kind)
        return base

    def load(self, base: Value, *indices: Value) -> Value:
        return self.builder.load(self.at(base, *indices), typ=FLOAT, align=4)

    def load_vector(self, base: Value, *indices: Value, kind: ir.Type = FLOAT) -> Value:
        place = self.at(base, *indices, kind=kind)
        if kind == FLOAT:
            return self.builder.load(place, typ=self.vector, align=4)
        halves = self.builder.load(place, typ=ir.VectorType(BFLOAT, self.lanes), align=2)
        bits = self.builder.shl(self.builder.zext(halves, self.integers), self.splat_int(16))
        return self.builder.bitcast(bits, self.vector)

    def load_int(self, base: Value, index: Value, kind: ir.Type = INT) -> Value:
        return self.builder.load(self.builder.gep(base, [index], source_etype=INT), typ=kind)

    def store(self, value: Value, base: Value, *indices: Value, kind: ir.Type = FLOAT) -> None:
        """Store a number or a vector; as `BFLOAT` a vector, rounded to nearest, ties to even."""
        builder, place = self.builder, self.at(base, *indices, kind=kind)
        if kind == FLOAT:
            builder.store(value, place, align=4)
            return
        bits, shift = builder.bitcast(value, self.integers), self.splat_int(16)
        odd = builder.and_(builder.lshr(bits, shift), self.splat_int(1))
        rounded = builder.add(builder.add(bits, self.splat_int(0x7FFF)), odd)
        is_nan = builder.fcmp_unordered('uno', value, value)
        rounded = builder.select(is_nan, self.splat_int(0x7FC00000), rounded)
        halves = builder.trunc(builder.lshr(rounded, shift), ir.VectorType(BFLOAT, self.lanes))
        builder.store(halves, place, align=2)

    def prefetch(self, address: Value) -> None:
        """Prefetch the cache line of an address to the L2 cache."""
        read, near, data = (ir.Constant(INT32, value) for value in (0, 2, 1))
        self.call('llvm.prefetch.p0', ir.VoidType(), address, read, near, data)

    # Control

    @contextmanager
    def loop(
        self, start: Value, stop: Value, step: int = 1, carry: Sequence[Value] = ()
    ) -> Iterator[tuple[Value, list[Value]]]:
        """Emit `for index in range(start, stop, step)`.

        Yields:
            The index, and a list of loop-carried values: the body replaces its entries. After the loop it has the final
            values.
        """
        builder, before = self.builder, self.builder.block
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(INT)
        index.add_incoming(start, before)
        carried = [builder.phi(value.type) for value in carry]
        for phi, value in zip(carried, carry):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed('<', index, stop), body, after)
        builder.position_at_end(body)
        values: list[Value] = list(carried)
        yield index, values
        index.add_incoming(builder.add(index, self.integer(step)), builder.block)
        for phi, value in zip(carried, values):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        values[:] = carried

    @contextmanager
    def tasks(self, counter: Value, count: Value) -> Iterator[Value]:
        """Emit a loop over tasks, and a return at its end; all threads of the function share the counter."""
        builder = self.builder
        take, work, done = (builder.append_basic_block() for _ in range(3))
        builder.branch(take)
        builder.position_at_end(take)
        task = builder.atomic_rmw('add', counter, self.integer(1), 'monotonic')
        builder.cbranch(builder.icmp_signed('<', task, count), work, done)
        builder.position_at_end(done)
        builder.ret_void()
        builder.position_at_end(work)
        yield task
        builder.branch(take)

    # Arithmetic

    def call(self, name: str, kind: ir.Type, *values: Value, fastmath: Sequence[str] = ()) -> Value:
        """Call an intrinsic function of LLVM."""
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(
                self.module, ir.FunctionType(kind, [value.type for value in values]), name
            )
        return self.builder.call(function, values, fastmath=fastmath)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a * b + c of vectors, rounded once."""
        return self.call(f'llvm.fma.v{self.lanes}f32', self.vector, a, b, c)

    def sqrt(self, x: Value) -> Value:
        name = 'llvm.sqrt.f32' if x.type == FLOAT else f'llvm.sqrt.v{self.lanes}f32'
        return self.call(name, x.type, x)

    def sum(self, x: Value) -> Value:
        """Return the sum of the numbers of a vector."""
        name = f'llvm.vector.reduce.fadd.v{self.lanes}f32'
        return self.call(name, FLOAT, self.number(-0.0), x, fastmath=('reassoc',))

    def max(self, x: Value) -> Value:
        """Return the largest number of a vector."""
        return self.call(f'llvm.vector.reduce.fmax.v{self.lanes}f32', FLOAT, x)

    def larger(self, x: Value, y: Value) -> Value:
        return self.builder.select(self.builder.fcmp_ordered('>', x, y), x, y)

    def smaller_int(self, x: Value, y: Value) -> Value:
        return self.builder.select(self.builder.icmp_signed('<', x, y), x, y)

    def muls(self, *values: Value) -> Value:
        """Return the product of integers."""
        product = values[0]
        for value in values[1:]:
            product = self.builder.mul(product, value)
        return product

    def exp(self, x: Value) -> Value:
        """Return the exponential of numbers <= 0, clamped to -87, with a relative error of 1e-7. NaN stays NaN."""
        builder, least = self.builder, self.splat(-87.0)
        x = builder.select(builder.fcmp_ordered('<', x, least), least, x)
        power = self.call(
            f'llvm.roundeven.v{self.lanes}f32',
            self.vector,
            builder.fmul(x, self.splat(1.4426950408889634)),
        )
        rest = self.fma(power, self.splat(-_LN2[1]), self.fma(power, self.splat(-_LN2[0]), x))
        polynomial = self.splat(_EXP[0])
        for coefficient in _EXP[1:]:
            polynomial = self.fma(polynomial, rest, self.splat(coefficient))
        y = self.fma(polynomial, builder.fmul(rest, rest), builder.fadd(rest, self.splat(1.0)))
        exponent = builder.shl(builder.fptosi(power, self.integers), self.splat_int(23))
        return builder.bitcast(
            builder.add(builder.bitcast(y, self.integers), exponent), self.vector
        )

    def lanes_from(self, count: Value) -> Value:
        """Return for every lane whether its index is at least `count`."""
        numbers = ir.Constant(self.integers, list(range(self.lanes)))
        first = self.builder.insert_element(
            ir.Constant(self.integers, ir.Undefined),
            self.builder.trunc(count, INT32),
            ir.Constant(INT32, 0),
        )
        first = self.builder.shuffle_vector(first, first, self.splat_int(0))
        return self.builder.icmp_signed('>=', numbers, first)

    def transpose(self, rows: Sequence[Value]) -> list[Value]:
        """Transpose `lanes` vectors."""
        rows, size = list(rows), 1
        while size < self.lanes:
            swapped = list(rows)
            low = [
                lane if not lane // size % 2 else self.lanes + lane - size
                for lane in range(self.lanes)
            ]
            high = [lane + size for lane in low]
            for row in range(self.lanes):
                if not row // size % 2:
                    for target, mask in ((row, low), (row + size, high)):
                        swapped[target] = self.builder.shuffle_vector(
                            rows[row], rows[row + size], ir.Constant(self.integers, mask)
                        )
            rows, size = swapped, 2 * size
        return rows
