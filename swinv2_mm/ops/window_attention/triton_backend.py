"""Attention with the kernels of `triton_kernels`, without copies of the map and without stored scores.

Gradients do not use atomic operations and are deterministic. Kernels are wrapped as operators of torch, so that
`torch.compile` does not trace them. Triton is imported when a kernel first runs.
"""

# Annotations are not postponed here: torch reads those of operators.
import functools
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.ops.execution import differentiates_plainly
from swinv2_mm.ops.optional import register_flop_formula
from swinv2_mm.ops.window_attention.partition import WindowPartition
from swinv2_mm.ops.window_attention.reference import differentiable_gradients, fold_bias

# Maximum tokens of the block of a program and of a step of its loop over the window, in the forward and the backward
# pass. Smaller for fp32, whose exact products need more registers.
BLOCK, STEP, GRAD_STEP = 64, 32, 64
BLOCK_FP32, STEP_FP32 = 32, 32
# Pipeline stages over steps or windows: in the kernels of the forward pass and of windows that fit into one block, and
# in the others, which need more registers.
STAGES, GRAD_STAGES = 3, 1
# Programs per multiprocessor: in the forward pass, in the backward pass, and for sums over windows, which every program
# writes.
FORWARD_PROGRAMS, GRAD_PROGRAMS, SUM_PROGRAMS = 8, 2, 4
LOG2_E = 1.4426950408889634


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """Import the kernels of windows of any size, and of windows that fit into one block."""
    from swinv2_mm.ops.window_attention import triton_kernels, triton_tile_kernels

    return triton_kernels, triton_tile_kernels


@functools.cache
def _processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device."""
    if device.type != 'cuda':
        return 2  # that of the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


def _block(tokens: int, dtype: torch.dtype) -> int:
    """Return the tokens per block: fewer for windows that would leave much of the last block empty."""
    size = BLOCK_FP32 if dtype == torch.float32 else BLOCK
    # Half the size doubles reads of keys, so it has to save a fifth of the tokens.
    while size > 16 and 1.25 * (tokens + -tokens % (size // 2)) <= tokens + -tokens % size:
        size //= 2
    return size


def kernel_dtype(dtype: torch.dtype) -> Any:
    """Return the Triton dtype of the operands of products."""
    import triton.language as tl

    from swinv2_mm.ops.window_attention.triton_parts import INTERPRETED

    if dtype == torch.bfloat16 and INTERPRETED:
        return tl.float32  # the interpreter multiplies bf16 as integers
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[
        dtype
    ]


def _allows_tf32() -> bool:
    """Return whether tf32 is allowed. The older setting cannot be read after the newer one was set."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # since torch 2.9
        return bool(matmul.fp32_precision == 'tf32')
    return bool(matmul.allow_tf32)


class _Launch:
    """Shared arguments of the kernels for one map, dtype and partition."""

    def __init__(
        self, qkv: Tensor, heads: int, window: list[int], shift: list[int], backward: bool = False
    ) -> None:
        images, height, width, channels = qkv.shape
        exact, tf32 = qkv.dtype == torch.float32, _allows_tf32()
        self.heads = heads
        self.tokens = window[0] * window[1]
        self.windows = images * -(-height // window[0]) * -(-width // window[1])
        self.sizes = (heads, height, width, *window, *shift)
        head_dim = channels // (3 * heads)
        self.block = _block(self.tokens, qkv.dtype)
        step = STEP_FP32 if exact else GRAD_STEP if backward else STEP
        self.step = min(self.block, step if head_dim <= 64 else step // 2)
        self.blocks = -(-self.tokens // self.block)
        self.steps = -(-self.tokens // self.step)
        self.programs = self.blocks * heads * self.windows
        whole = height % window[0] == 0 and width % window[1] == 0
        whole = whole and self.tokens % self.block == 0 and not any(shift)
        # Divisions by compile-time constants are cheap. Square windows have few
        # sizes; those that shrink to a small map do not get separate kernels.
        self.options = dict(
            WIN=window[0] if window[0] == window[1] else 0,
            D=head_dim,
            BLOCK_D=max(16, 1 << (head_dim - 1).bit_length()),  # the least that tensor cores take
            BLOCK=self.block,
            num_warps=4 if exact else self.block // 16 * (2 if head_dim > 64 else 1),
            num_stages=GRAD_STAGES if backward and self.blocks > 1 else STAGES,
        )
        self.products = dict(
            MASKED=not whole,
            DTYPE=kernel_dtype(qkv.dtype),
            # In half precision only gradients of logits are multiplied in fp32; for these tf32 will do.
            PRECISION='ieee' if exact and not tf32 else 'tf32',
        )
        # Scaled losses take the gradients of logits out of the range of fp16.
        self.wide = kernel_dtype(torch.bfloat16 if qkv.dtype == torch.bfloat16 else torch.float32)

    def rows(self, like: Tensor) -> Tensor:
        """Return an uninitialised fp32 tensor with one number per token, `(B * nW, nH, N)`."""
        return like.new_empty(self.windows, self.heads, self.tokens, dtype=torch.float32)

    def parts(self, device: torch.device, per_processor: int, programs: int) -> tuple[int, int]:
        """Split the windows so that the device has enough programs, with `programs` programs per part.

        Returns:
            The number of parts, and the windows per part; the last part may have fewer.
        """
        wanted = max(1, _processors(device) * per_processor // programs)
        each = -(-self.windows // min(wanted, self.windows))
        return -(-self.windows // each), each


def _base_2(x: Tensor) -> Tensor:
    """Return logits for exponentials of base 2, contiguous in fp32."""
    return (x.detach().float() * LOG2_E).contiguous()


def _attend(qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    """Return the output, and the log-sum-exp of the logits of base 2, `(B * nW, nH, N)`."""
    launch = _Launch(qkv, len(table), window, shift)
    qkv = qkv.contiguous()
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    lse = launch.rows(qkv)
    if not launch.programs:
        return out, lse
    kernels, tile_kernels = _kernels()
    tensors = qkv, _base_2(scale), _base_2(table), out, lse
    options = {**launch.options, **launch.products}
    with torch.cuda.device_of(qkv):
        if launch.blocks == 1:
            parts, each = launch.parts(qkv.device, FORWARD_PROGRAMS, launch.heads)
            tile_kernels.tile_attention_kernel[(parts * launch.heads,)](
                *tensors, launch.windows, each, *launch.sizes, **options
            )
        else:
            kernels.attention_kernel[(launch.programs,)](
                *tensors, *launch.sizes, **options, STEP=launch.step
            )
    return out, lse


_attention = torch.library.custom_op(
    'swinv2_mm::window_attention',
    _attend,
    mutates_args=(),
    schema='(Tensor qkv, Tensor scale, Tensor table, SymInt[] window, SymInt[] shift) -> (Tensor, Tensor)',
)


@_attention.register_fake
def _(qkv, scale, table, window, shift):  # type: ignore[no-untyped-def]
    images, height, width, channels = qkv.shape
    windows = images * -(-height // window[0]) * -(-width // window[1])
    shape = (windows, table.shape[0], window[0] * window[1])
    return (
        qkv.new_empty(images, height, width, channels // 3),
        qkv.new_empty(shape, dtype=torch.float32),
    )


@torch.library.custom_op(
    'swinv2_mm::window_attention_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor qkv, Tensor scale, Tensor table, Tensor out, Tensor lse, SymInt[] window, '
    'SymInt[] shift, bool with_table) -> (Tensor, Tensor, Tensor)',
)
def _backward(grad, qkv, scale, table, out, lse, window, shift, with_table):  # type: ignore[no-untyped-def]
    """Return the gradients of qkv, scale and table; that of the table is zero unless `with_table`."""
    launch = _Launch(qkv, len(table), window, shift, backward=True)
    qkv, grad, out = qkv.contiguous(), grad.contiguous(), out.contiguous()
    grad_qkv = torch.empty_like(qkv)
    if not launch.programs:
        return grad_qkv, scale.new_zeros(scale.shape), table.new_zeros(table.shape)
    heads, tokens = launch.heads, launch.tokens
    options = {**launch.options, **launch.products}
    tensors = qkv, _base_2(scale), _base_2(table), lse
    kernels, tile_kernels = _kernels()
    grad_table = table.new_zeros(table.shape)
    with torch.cuda.device_of(qkv):
        if launch.blocks == 1:
            parts, each = launch.parts(qkv.device, GRAD_PROGRAMS, heads)
            grad_scale = lse.new_empty(parts, heads)
            grad_bias = lse.new_empty(parts, heads, tokens, tokens)
            tile_kernels.tile_grad_kernel[(parts * heads,)](
                *(*tensors, grad, grad_qkv, grad_scale, grad_bias),
                *(launch.windows, each, *launch.sizes),
                **options,
                WIDE=launch.wide,
            )
            grad_scale = grad_scale.sum(0)
        else:
            delta = launch.rows(qkv)
            grad_scale = lse.new_empty(launch.windows, heads, launch.blocks)
            options['STEP'] = launch.step
            kernels.delta_kernel[(launch.programs,)](
                out, grad, delta, *launch.sizes, **launch.options
            )
            kernels.qkv_grad_kernel[(launch.programs,)](
                *(*tensors, delta, grad, grad_qkv, grad_scale),
                *launch.sizes,
                **options,
                WIDE=launch.wide,
            )
            grad_scale = grad_scale.sum((0, 2))
            if with_table:
                pairs = heads * launch.blocks * launch.steps
                parts, each = launch.parts(qkv.device, SUM_PROGRAMS, pairs)
                grad_bias = lse.new_empty(parts, heads, tokens, tokens)
                kernels.bias_grad_kernel[(parts * pairs,)](
                    *(*tensors, delta, grad, grad_bias),
                    *(launch.windows, each, *launch.sizes),
                    **options,
                )
        if with_table:
            grad_table = fold_bias(grad_bias.sum(0), window).to(table.dtype)
    return grad_qkv, grad_scale.view(scale.shape).to(scale.dtype), grad_table


@_backward.register_fake
def _(grad, qkv, scale, table, out, lse, window, shift, with_table):  # type: ignore[no-untyped-def]
    return qkv.new_empty(qkv.shape), scale.new_empty(scale.shape), table.new_empty(table.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, scale, table, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(qkv, scale, table, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None, None
    qkv, scale, table, out, lse = ctx.saved_tensors
    if differentiates_plainly():
        partition = WindowPartition(tuple(qkv.shape[1:3]), tuple(ctx.window), tuple(ctx.shift))
        return *differentiable_gradients(grad, (qkv, scale, table), partition), None, None
    with_table = ctx.needs_input_grad[2]
    grads = _backward(grad, qkv, scale, table, out, lse, ctx.window, ctx.shift, with_table)
    return *grads, None, None


_attention.register_autograd(_differentiate, setup_context=_save)


def triton_window_attention(
    qkv: Tensor, scale: Tensor, bias_table: Tensor, partition: WindowPartition, direct: bool = False
) -> Tensor:
    """Compute `window_attention`. Logits and softmax are in fp32; second derivatives are those of the reference.

    fp32 is multiplied as tf32 if `torch.backends.cuda.matmul` allows it. The inputs, the output and one number per
    token and head are stored for the backward pass. `direct` runs the kernel without the torch operator.
    """
    call = _attend if direct else _attention
    return call(qkv, scale, bias_table, [*partition.window], [*partition.shift])[0]


@register_flop_formula(torch.ops.swinv2_mm.window_attention)
def _flops(qkv: Any, scale: Any, table: Any, window: Any, *args: Any, **kwargs: Any) -> int:
    """Return the flops of two products of the tokens of every window with padding, for torch's flop counter."""
    images, height, width, channels = qkv
    windows = images * -(-height // window[0]) * -(-width // window[1])
    return 2 * 2 * windows * (window[0] * window[1]) ** 2 * channels // 3


@register_flop_formula(torch.ops.swinv2_mm.window_attention_backward)
def _backward_flops(
    grad: Any, qkv: Any, scale: Any, table: Any, out: Any, lse: Any, window: Any, *args: Any,
    **kwargs: Any,
) -> int:  # fmt: skip
    """Return the flops of four products; the recomputed scores are not counted."""
    return 2 * _flops(qkv, scale, table, window)
