"""Decisions about kernels and shortcuts, for all layers and operators.

A shortcut is used only where its results cannot be distinguished from those of the plain network: torch's operators
are not traced, transformed or intercepted, and every module that the shortcut does not call is the one that its parent
created, without hooks.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from swinv2_mm.ops import optional, private
from swinv2_mm.ops.llvm import runtime

BACKENDS = ('auto', 'reference', 'fused', 'llvm', 'triton')
MAX_HEAD_DIM = 128  # of the kernels
LLVM_LANES = tuple(runtime.LANES.values())
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_CAPABILITY = (8, 0)  # the first with bf16 and tf32
MIN_TILES = 64  # of 4 x 4 pixels in the maps of a convolution by Winograd's algorithm
MOST_FREE_MEMORY = 2**28  # bytes of free memory kept when the size of images changes
_TENSORS = (Tensor, nn.Parameter)
_FP32, _BF16 = torch.float32, torch.bfloat16
_NORM_DTYPES = {
    (_FP32,) * 4,
    (_FP32, _BF16, _FP32, _FP32),
    (_BF16, _BF16, _FP32, _FP32),
    (_BF16,) * 4,
}
"""Of a map, its branch, and weight and bias of the norm of the branch."""


class Execution(NamedTuple):
    """Settings of the execution of a block."""

    in_bands: bool = False  # compute a few rows of windows at a time, with cached position biases
    overwrite: bool = False  # let the output replace the input; only with `in_bands`


PLAIN = Execution()


def is_observed(*tensors: Tensor) -> bool:
    """Return whether torch's operators on these tensors are traced, transformed or intercepted."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or private.is_exported()
        or private.is_transformed()
        or private.is_in_mode()
        or not all(type(tensor) in _TENSORS for tensor in tensors)
    )


def is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is a `kind`, not a subclass, and calling it only runs its `forward`."""
    return (
        type(module) is kind
        and not private.is_call_observed(module)
        and not private.has_global_hook()
    )


def _parts(module: nn.Module) -> list[nn.Module]:
    """Return a module and its submodules; faster than `modules()`."""
    found = [module]
    for part in found:
        found += [child for child in part._modules.values() if child is not None]
    return found


def kinds(module: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes of a module and its submodules; empty if one is not from this package or torch."""
    found = tuple(type(part) for part in _parts(module))
    known = all(kind.__module__.split('.')[0] in ('swinv2_mm', 'torch') for kind in found)
    return found if known else ()


def runs_as_made(module: nn.Module) -> bool:
    """Return whether a module in eval mode has the submodules that it was created with, and nothing observes them.

    The module stores the result of `kinds` as `made_of`.
    """
    made_of, parts = getattr(module, 'made_of', ()), _parts(module)
    return (
        len(made_of) == len(parts)
        and all(type(part) is kind for part, kind in zip(parts, made_of))
        and not private.has_global_hook()
        and not any(part.training or private.is_call_observed(part) for part in parts)
        and all(
            weight is None or type(weight) in _TENSORS
            for part in parts
            for weight in part._parameters.values()
        )
        and all(len(part.normalized_shape) == 1 for part in parts if type(part) is nn.LayerNorm)
    )


def runs_in_bands(module: nn.Module, x: Tensor) -> bool:
    """Return whether a module may compute a few rows of its map at a time: unobserved inference on a CPU."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == 'cpu'
        and not is_observed(x)
        and runs_as_made(module)
    )


def plan_block(block: Any, x: Tensor, is_owned: bool = False) -> Execution:
    """Decide how a block of a stage runs on `(B, H, W, C)`, which may be overwritten if it `is_owned`.

    Modules that are not a `SwinBlock` run without shortcuts.
    """
    if (
        not getattr(block, 'windows_are_independent', False)
        or not runs_in_bands(block, x)
        or block.attn.backend not in ('auto', 'fused', 'llvm')
    ):
        return PLAIN
    return Execution(in_bands=True, overwrite=is_owned and x.is_contiguous())


_last_shape: tuple[int, ...] = ()


def tidy_memory(x: Tensor) -> None:
    """Keep freed memory for the next call on a CPU: up to 1 GB in training, less in inference at one image size."""
    global _last_shape
    if x.device.type != 'cpu' or is_observed(x):
        return
    if torch.is_grad_enabled():
        private.keep_freed_memory_of_training()
        return
    private.keep_freed_memory()
    if tuple(x.shape) != _last_shape:
        _last_shape = tuple(x.shape)
        private.limit_free_memory(MOST_FREE_MEMORY)


def calls_kernels_directly(*tensors: Tensor) -> bool:
    """Return whether to run kernels without a torch operator, whose call takes longer than some kernels."""
    return not torch.is_grad_enabled() and not is_observed(*tensors)


def lacks_threads(x: Tensor) -> bool:
    """Return whether oneDNN would compute wrong values, as in `torch.nn.Conv2d`; see `private.has_all_threads`."""
    return x.device.type == 'cpu' and not is_observed(x) and not private.has_all_threads()


def is_one_patch_wide(x: Tensor, patch_size: int) -> bool:
    """Return whether oneDNN would embed an image from wrong memory: in bf16 with AMX, if it is one patch wide."""
    return x.device.type == 'cpu' and not is_observed(x) and x.shape[3] == patch_size


def differentiates_plainly() -> bool:
    """Return whether a backward pass consists of plain operators: under `create_graph`, transforms, forward-mode AD."""
    return torch.is_grad_enabled() or private.is_transformed()


def takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether `ops.linear` uses oneDNN: fp32 on a CPU with AVX2 or AVX-512, in training not on Intel."""
    return (
        x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.layout == torch.strided
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and not is_observed(x, weight, *(() if bias is None else (bias,)))
        and not (torch.is_grad_enabled() and private.is_intel())
        and torch.backends.cpu.get_cpu_capability() in runtime.LANES
        and private.onednn_linear() is not None
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled('cpu')
        and private.has_all_threads()
    )


def takes_onednn_in_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether `ops.linear` uses oneDNN in bf16: in inference, for bf16 tensors or under bf16 autocast."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    is_cast = torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == torch.bfloat16
    kinds_of_numbers = (torch.bfloat16, torch.float32) if is_cast else (torch.bfloat16,)
    return (
        not torch.is_grad_enabled()
        and all(tensor.device.type == 'cpu' for tensor in tensors)
        and all(tensor.dtype in kinds_of_numbers for tensor in tensors)
        and x.numel() > 0
        and weight.layout == torch.strided
        and (bias is None or (bias.is_contiguous() and bias.shape == weight.shape[:1]))
        and not is_observed(*tensors)
        and bool(torch.backends.mkldnn.enabled)
        and private.has_bf16_linear()
        and private.has_all_threads()
    )


def fuses_norm(x: Tensor, y: Tensor, norm: nn.Module) -> bool:
    """Return whether `ops.norm.add_norm` runs its kernel: contiguous fp32 or bf16 tensors on a CPU, no gradients."""
    if torch.is_grad_enabled() or not is_as_made(norm, nn.LayerNorm):
        return False
    norm = cast(nn.LayerNorm, norm)
    if norm.weight is None or norm.bias is None:
        return False
    tensors = x, y, norm.weight, norm.bias
    shape = tuple(norm.normalized_shape)
    return (
        x.shape == y.shape
        and shape == norm.weight.shape == norm.bias.shape == y.shape[-1:]
        and all(tensor.device.type == 'cpu' for tensor in tensors)
        and (x.dtype, y.dtype, norm.weight.dtype, norm.bias.dtype) in _NORM_DTYPES
        and all(tensor.is_contiguous() for tensor in tensors)
        and not is_observed(*tensors)
        and runtime.why_not_here() is None
        and y.shape[-1] % runtime.lanes() == 0
    )


def takes_winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a 3 x 3 convolution of (B, C, H, W) runs by Winograd's algorithm: fp32 on a CPU, large maps."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        x.dim() == 4
        and x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4) >= MIN_TILES
        and all(tensor.device.type == 'cpu' and tensor.dtype == torch.float32 for tensor in tensors)
        and not is_observed(*tensors)
        and not torch.is_autocast_enabled('cpu')
        and runtime.why_not_here() is None
        and x.shape[1] == weight.shape[1]
        and all(channels % runtime.lanes() == 0 for channels in weight.shape[:2])
    )


def check_backend(name: str) -> str:
    """Return `name`, or raise a ValueError if it is not an attention backend."""
    if name not in BACKENDS:
        names = ', '.join(BACKENDS)
        raise ValueError(f'unknown attention backend {name!r}: choose one of {names}')
    return name


def choose_backend(
    name: str,
    device: torch.device,
    dropout_p: float = 0.0,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Return the attention backend to run: `name`, or the fastest available one for `'auto'`.

    Raises:
        ValueError: If `name` is unknown or cannot run; the message gives the reason.
    """
    check_backend(name)
    # Plain operators for ONNX, TorchScript and transforms; a compiler handles transforms itself.
    if torch.jit.is_tracing() or (not torch.compiler.is_compiling() and private.is_transformed()):
        return 'reference'
    if name == 'auto':
        if dropout_p:
            return 'reference'
        kernel = {'cuda': 'triton', 'cpu': 'llvm'}.get(device.type)
        if kernel is None or private.is_exported() or _WHY_NOT[kernel](device, head_dim, dtype):
            return 'fused'
        return kernel
    if name != 'reference' and dropout_p:
        raise ValueError(
            f"attention backend '{name}' cannot drop attention weights, and dropout_p is {dropout_p}: set "
            "attn_drop_rate=0, or attn_backend='auto' or 'reference'"
        )
    reason = _WHY_NOT[name](device, head_dim, dtype) if name in _WHY_NOT else None
    if reason is not None:
        raise ValueError(
            f"attention backend '{name}' cannot run here, because {reason}; attn_backend='auto' takes the fastest "
            'backend that can'
        )
    return name


@private.assume_constant_result
def why_not_llvm(
    device: torch.device, head_dim: int = 32, dtype: torch.dtype = torch.float32
) -> str | None:
    """Return why the CPU kernels cannot run, as a clause that follows "because"; `None` if they can."""
    if device.type != 'cpu':
        return f'it is for CPUs, and the tensors are on the device {str(device)!r}'
    if dtype not in (torch.float32, torch.bfloat16):
        return f'it is for fp32 and bf16, not for {dtype}'
    if head_dim % LLVM_LANES[0] or not 1 <= head_dim <= MAX_HEAD_DIM:
        return f'its heads have a multiple of {LLVM_LANES[0]} channels up to {MAX_HEAD_DIM}, not {head_dim}'
    return runtime.why_not_here()


@private.assume_constant_result
def why_not_triton(
    device: torch.device, head_dim: int = 32, dtype: torch.dtype = torch.float32
) -> str | None:
    """Return why the Triton kernels cannot run, as a clause that follows "because"; `None` if they can."""
    if dtype not in TRITON_DTYPES:
        return f'it computes in fp16, bf16 or fp32, not in {dtype}'
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        return f'its heads have 1 to {MAX_HEAD_DIM} channels, not {head_dim}'
    if device.type == 'cuda' and device.index is None and torch.cuda.is_available():
        device = torch.device('cuda', torch.cuda.current_device())
    return why_not_triton_on(device)


@functools.cache
def why_not_triton_on(device: torch.device) -> str | None:
    """Return why Triton does not run on a device; see `why_not_triton`."""
    try:
        from swinv2_mm.ops.window_attention.triton_parts import INTERPRETED
    except Exception as error:  # a broken or clashing package raises anything
        return optional.unusable('triton', error)
    if INTERPRETED:
        return None
    if device.type != 'cuda':
        return f'it needs an NVIDIA GPU, and the tensors are on the device {str(device)!r}'
    if not torch.cuda.is_available():
        return 'it needs an NVIDIA GPU, and torch finds none'
    if torch.version.hip is not None:
        return 'it needs an NVIDIA GPU, and this torch is built for ROCm'
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f'it needs a GPU of compute capability {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or more, and '
            f'{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}'
        )
    if sys.platform == 'linux' and not (
        os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang')
    ):
        return 'Triton needs a C compiler: install gcc or clang'
    return None


_WHY_NOT = {'llvm': why_not_llvm, 'triton': why_not_triton}
