"""Attention on a CPU with kernels compiled by LLVM, without copies of the map and without stored scores.

Gradients are deterministic for a given number of threads. Kernels are wrapped as operators of torch, so that
`torch.compile` does not trace them. llvmlite is imported when a kernel is first needed.
"""

# Annotations are not postponed here: torch reads those of operators.
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops.execution import LLVM_LANES as LANES
from swinv2_mm.ops.execution import differentiates_plainly
from swinv2_mm.ops.llvm import runtime
from swinv2_mm.ops.optional import register_flop_formula
from swinv2_mm.ops.window_attention.partition import Band, Pair, Runs, WindowPartition
from swinv2_mm.ops.window_attention.reference import differentiable_gradients

# Tasks per thread: enough to balance the load, few enough that expanding biases takes little time.
TASKS_PER_THREAD = 4


@functools.lru_cache(maxsize=128)
def _plan(
    images: int, size: Pair, runs: Runs, heads: int, threads: int
) -> tuple[Tensor, int, list[Tensor]]:
    """Return tasks `(nH * tasks per head, TASK)`, see `llvm_windows`, tokens of the largest window, and pixel indices.

    The tasks are head by head and point to the pixel indices.
    """
    groups = -(-threads * TASKS_PER_THREAD // heads)
    count = functools.partial(torch.arange, device='cpu')
    pixels: list[Tensor] = []
    per_head = []
    tiles = sorted(itertools.product(*runs), key=lambda tile: -tile[0].length * tile[1].length)
    for index, (row, col) in enumerate(tiles):
        image = count(images) * size[0] * size[1]
        down = (row.start + count(row.count) * row.length) * size[1]
        across = col.start + count(col.count) * col.length
        origins = (image[:, None, None] + down[:, None] + across).flatten()
        offsets = (count(row.length)[:, None] * size[1] + count(col.length)).flatten()
        pixels += origins, offsets
        bounds = [len(origins) * group // groups for group in range(groups + 1)]
        window = row.length, col.length
        per_head += [
            (index, *window, origins[first:].data_ptr(), last - first, offsets.data_ptr())
            for first, last in itertools.pairwise(bounds)
            if first < last
        ]
    tasks = [(index, head, *rest) for head in range(heads) for index, *rest in per_head]
    tokens = max((row.length * col.length for row, col in tiles), default=0)
    return torch.tensor(tasks, dtype=torch.int64, device='cpu'), tokens, pixels


def _partition(qkv: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> WindowPartition:
    """Return the partition of a map of shape `qkv`, `(B, H, W, C)`."""
    return WindowPartition((qkv[1], qkv[2]), (window[0], window[1]), (shift[0], shift[1]))


class _Launch:
    """Shared arguments of the kernels for one map."""

    def __init__(self, qkv: Tensor, table: Tensor, runs: Runs) -> None:
        images, height, width, channels = qkv.shape
        self.heads = len(table)
        self.head_dim = channels // (3 * self.heads)
        usable = (lanes for lanes in LANES if self.head_dim % lanes == 0)
        self.lanes = max(lanes for lanes in usable if lanes <= runtime.lanes())
        self.threads = torch.get_num_threads()
        plan = _plan(images, (height, width), runs, self.heads, self.threads)
        self.tasks, self.tokens, self.pixels = plan
        self.channels, self.in_bf16 = channels // 3, qkv.dtype == torch.bfloat16

    def run(
        self, backward: bool, tensors: Sequence[Tensor | None], window: Sequence[int], *more: Tensor
    ) -> None:
        """Run the kernel of a pass with qkv, out, scale and table, and what `BACKWARD_ARGUMENTS` adds."""
        if not len(self.tasks):
            return
        from swinv2_mm.ops.window_attention import llvm_backward_kernel, llvm_kernel, llvm_windows

        threads = min(self.threads, len(self.tasks))
        size = llvm_windows.scratch_size(self.tokens, self.lanes, self.head_dim, backward)
        scratch = torch.empty(threads * size, dtype=torch.float32, device='cpu')
        counters = torch.zeros(2, dtype=torch.int64, device='cpu')
        arguments = [
            *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
            self.tasks.data_ptr(), counters.data_ptr(), scratch.data_ptr(), size,
            len(self.tasks), self.channels, table_pitch(window), *window,
            *(tensor.data_ptr() for tensor in more),
        ]  # fmt: skip
        if backward:
            address = llvm_backward_kernel.build(self.lanes, self.head_dim)
        else:
            address = llvm_kernel.build(self.lanes, self.head_dim, self.in_bf16)
        runtime.run(address, arguments, threads)


def table_pitch(window: Sequence[int]) -> int:
    """Return the numbers per head in the result of `lay_out_table`."""
    return (2 * window[0] - 1) * (2 * window[1] - 1) + LANES[-1]


def lay_out_table(table: Tensor) -> Tensor:
    """Convert the bias table of `window_attention` to the layout of the kernels: `(nH, table_pitch)` in fp32.

    It is reversed, so that the biases of a query are in the order of its keys, and padded by one vector.
    """
    return F.pad(table.float().flatten(1).flip(1), (0, LANES[-1]))


@torch.library.custom_op(
    'swinv2_mm::cpu_window_attention',
    mutates_args=(),
    schema='(Tensor qkv, Tensor scale, Tensor table, SymInt[] window, SymInt[] shift) -> Tensor',
)
def attention(qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    """Compute attention inside the windows of a map: `(B, H, W, 3 * nH * D)` to `(B, H, W, nH * D)`, all in fp32.

    `table` is the result of `lay_out_table`; see `WindowPartition` for `window` and `shift`.
    """
    return _attend(qkv, scale, table, window, _partition(qkv.shape, window, shift).runs)


def _attend(qkv: Tensor, scale: Tensor, table: Tensor, window: Sequence[int], runs: Runs) -> Tensor:
    qkv, table = qkv.contiguous(), table.contiguous()
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    launch = _Launch(qkv, table, runs)
    launch.run(False, (qkv, out, scale.contiguous(), table), window)
    return out


@attention.register_fake
def _(qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.custom_op(
    'swinv2_mm::cpu_window_attention_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor qkv, Tensor scale, Tensor table, SymInt[] window, SymInt[] shift) '
    '-> (Tensor, Tensor, Tensor)',
)
def _backward(grad, qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    """Return the gradients of qkv, scale and table."""
    qkv, table, grad = qkv.contiguous(), table.contiguous(), grad.contiguous()
    grad_qkv = torch.empty_like(qkv)
    launch = _Launch(qkv, table, _partition(qkv.shape, window, shift).runs)
    tasks = len(launch.tasks)
    grad_scale = scale.new_zeros(tasks, dtype=torch.float64)
    grad_table = table.new_zeros(tasks, table.shape[1])
    launch.run(
        True, (qkv, None, scale.contiguous(), table), window, grad, grad_qkv, grad_scale, grad_table
    )
    return (
        grad_qkv,
        grad_scale.view(launch.heads, -1).sum(1).view(scale.shape).to(scale.dtype),
        grad_table.view(launch.heads, -1, table.shape[1]).sum(1),
    )


@_backward.register_fake
def _(grad, qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    return torch.empty_like(qkv), torch.empty_like(scale), torch.empty_like(table)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if not differentiates_plainly():
        grads = _backward(grad, *ctx.saved_tensors, ctx.window, ctx.shift)
        return *grads, None, None
    qkv, scale, laid_out = ctx.saved_tensors
    partition, sides = _partition(qkv.shape, ctx.window, ctx.shift), [2 * n - 1 for n in ctx.window]
    with torch.enable_grad():
        table = laid_out[:, : -LANES[-1]].flip(1).unflatten(1, sides)
    of_qkv, of_scale, of_table = differentiable_gradients(grad, (qkv, scale, table), partition)
    if of_table is not None:
        of_table = lay_out_table(of_table)
    return of_qkv, of_scale, of_table, None, None


attention.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.swinv2_mm.cpu_window_attention)
def _flops(
    qkv: Any, scale: Any, table: Any, window: Any, shift: Any, *args: Any, **kwargs: Any
) -> int:
    """Return the flops of two products of the tokens of every window, for torch's flop counter."""
    pairs = (
        row.count * col.count * (row.length * col.length) ** 2
        for row, col in itertools.product(*_partition(qkv, window, shift).runs)
    )
    return 2 * 2 * qkv[0] * sum(pairs) * qkv[3] // 3


@register_flop_formula(torch.ops.swinv2_mm.cpu_window_attention_backward)
def _backward_flops(grad: Any, *args: Any, **kwargs: Any) -> int:
    """Return the flops of four products; the recomputed scores are not counted."""
    return 2 * _flops(*args)


def llvm_window_attention(
    qkv: Tensor, scale: Tensor, derive: Any, partition: WindowPartition | Band, direct: bool = False
) -> Tensor:
    """Compute `window_attention`, in fp32 also for maps in bf16. Second derivatives are those of the reference.

    Only the inputs are stored for the backward pass. `direct` runs the kernel without the torch operator.
    """
    table, scale = derive('llvm', lay_out_table), scale.float()
    if direct:
        return _attend(qkv, scale, table, partition.window, partition.runs)
    if isinstance(partition, Band):
        raise ValueError('a band is for inference: call it under torch.no_grad()')
    sides = [*partition.window], [*partition.shift]
    return attention(qkv.float(), scale, table, *sides).to(qkv.dtype)
