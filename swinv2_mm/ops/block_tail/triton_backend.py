"""The operator around the kernel, and when it can run."""

# Annotations are not postponed here: torch reads those of operators.
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from swinv2_mm.ops.llvm import runtime
from swinv2_mm.ops.window_attention.triton_backend import kernel_dtype, why_not_triton

# Above, products are large enough for the libraries of the vendor, and the channels of a token fill the registers.
MAX_CHANNELS = 192


class _Sizes(NamedTuple):
    """How a program goes about it: tokens, hidden channels at a time, warps, stages, and `KEEP` of the kernel."""

    block: int
    step: int
    warps: int
    stages: int
    keep: bool


def _sizes(channels: int) -> _Sizes:
    """The fastest seen on an H100 with bf16, for 96, 128 and 192 channels."""
    if channels < 128:
        return _Sizes(64, 32, 4, 3, True)
    if channels == 128:
        return _Sizes(128, 64, 8, 2, True)
    return _Sizes(64, 64, 4, 2, False)


class TailWeights(NamedTuple):
    """Weights of what follows the attention: matrices `(C_out, C_in)`, biases and norms `(C_out,)`."""

    proj_weight: Tensor
    proj_bias: Tensor
    norm1_weight: Tensor
    norm1_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor


@functools.cache
def _kernel() -> Any:
    from swinv2_mm.ops.block_tail import triton_kernel

    return triton_kernel.block_tail_kernel


def _parts(channels: int) -> tuple[int, int]:
    """Channels as a power of two and a rest."""
    first = 1 << (channels.bit_length() - 1)
    return first, channels - first


def why_not_fused(
    device: torch.device, dtype: torch.dtype, channels: int, hidden: int
) -> str | None:
    """Why the kernel cannot run, in words that fit after "because"; `None` if it can.

    Args:
        device: Where the tensors are.
        dtype: In which to multiply.
        channels: C.
        hidden: Those of the hidden layer.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return f'it computes in fp16 or bf16, not in {dtype}'
    rest = _parts(channels)[1]
    if not 16 <= channels <= MAX_CHANNELS or rest & (rest - 1) or 0 < rest < 16:
        return f'{channels} channels are not 16 to {MAX_CHANNELS} and the sum of two powers of 2'
    if hidden % _sizes(channels).step:
        return f'{hidden} hidden channels are not a multiple of {_sizes(channels).step}'
    return why_not_triton(device, 32, dtype)


def _run(x, attended, weights, eps1, eps2):  # type: ignore[no-untyped-def]
    x, attended = x.contiguous(), attended.contiguous()
    out, channels = torch.empty_like(x), x.shape[-1]
    tokens = x.numel() // channels
    if not tokens:
        return out
    (first, rest), sizes = _parts(channels), _sizes(channels)
    with torch.cuda.device_of(x):
        _kernel()[(-(-tokens // sizes.block),)](
            *(x, attended, *(weight.contiguous() for weight in weights), out, tokens, eps1, eps2),
            C=channels,
            C0=first,
            C1=rest,
            HIDDEN=weights[4].shape[0],
            BLOCK=sizes.block,
            STEP=sizes.step,
            DTYPE=kernel_dtype(attended.dtype),
            KEEP=sizes.keep,
            num_warps=sizes.warps,
            num_stages=sizes.stages,
        )
    return out


_block_tail = torch.library.custom_op(
    'swinv2_mm::block_tail',
    _run,
    mutates_args=(),
    schema='(Tensor x, Tensor attended, Tensor[] weights, float eps1, float eps2) -> Tensor',
)


@_block_tail.register_fake
def _(x, attended, weights, eps1, eps2):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def block_tail(
    x: Tensor, attended: Tensor, weights: TailWeights, eps: tuple[float, float]
) -> Tensor:
    """`y = x + norm1(proj(attended))`, and from it `y + norm2(fc2(gelu(fc1(y))))`. There is no gradient.

    Sums, norms and residuals are in fp32; the hidden layer is rounded to the dtype of `attended`.

    Args:
        x: Input of the block, `(..., C)`.
        attended: Output of the attention before its projection, `(..., C)` in fp16 or bf16.
        weights: Those of the layers; matrices are converted to the dtype of `attended`.
        eps: Of the two norms.

    Returns:
        `(..., C)` in the dtype of `x`.
    """
    dtype = attended.dtype
    converted = [weight.to(dtype) if weight.dim() == 2 else weight for weight in weights]
    call = _run if runtime.is_plain(x) else _block_tail
    return call(x, attended, converted, *eps)


@register_flop_formula(torch.ops.swinv2_mm.block_tail)
def _flops(x: Any, attended: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    """For torch's flop counter: the products of three linear layers."""
    matrices = sum(math.prod(weight) for weight in weights if len(weight) == 2)
    return 2 * math.prod(x[:-1]) * matrices
