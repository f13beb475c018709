"""Non-public functions of torch and the C library, each with a fallback.

Nothing else in the package calls a private function of torch or uses ctypes.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# --- detection of tracing and transforms; assumed to be active if this torch cannot tell


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward-mode AD is active."""
    try:
        functorch = torch._C._functorch.peek_interpreter_stack() is not None
        return functorch or torch.autograd.forward_ad._current_level >= 0
    except AttributeError:
        return True


def is_batched(tensor: Tensor) -> bool:
    """Return whether a tensor is one of the `vmap` that `is_grads_batched` and `vectorize=True` use."""
    try:
        return bool(torch._C._functorch.is_legacy_batchedtensor(tensor))
    except AttributeError:
        return True


def is_in_mode() -> bool:
    """Return whether a mode intercepts operators, such as `FakeTensorMode`; a default device does not count."""
    try:
        if torch._C._len_torch_dispatch_stack():
            return True
        modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
        return any(type(mode).__name__ != 'DeviceContext' for mode in modes)
    except AttributeError:
        return True


def is_exported() -> bool:
    """Return whether `torch.export` is tracing: the program must not contain operators of this package.

    `torch.compiler.is_exporting` is also true under `torch.compile` in torch 2.7 to 2.13. Earlier versions have
    neither the function nor the flag.
    """
    return bool(getattr(torch.compiler, '_is_exporting_flag', False))


def has_global_hook() -> bool:
    """Return whether a hook is registered for all modules."""
    try:
        return bool(nn.modules.module._has_any_global_hook())
    except AttributeError:
        return True


# Instance attributes of a module that replace a method or a parameter.
_PATCHES = {FunctionType, MethodType, partial, Tensor, nn.Parameter}


def is_call_observed(module: nn.Module) -> bool:
    """Return whether calling a module does more than run the `forward` of its class."""
    try:
        return bool(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or module._compiled_call_impl is not None
            or 'forward' in module.__dict__
            or not _PATCHES.isdisjoint(map(type, module.__dict__.values()))
        )
    except AttributeError:
        return True


def assume_constant_result(function: Any) -> Any:
    """See `torch.compiler.assume_constant_result`, which imports the compiler and Triton."""
    function._dynamo_marked_constant = True
    return function


# --- operators


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that disables autocast; also works for devices without autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def channels_last(x: Tensor) -> Tensor:
    """Return `(B, C, H, W)` in channels-last format, or unchanged under `vmap`, which does not support it."""
    return x if is_transformed() else x.contiguous(memory_format=torch.channels_last)


@cache
def onednn_linear() -> Any:
    """Return oneDNN's `mkldnn._linear_pointwise`, which torch's compiler uses; `None` if it does not exist."""
    available = torch.backends.mkldnn.is_available()
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None) if available else None


def onednn_weight(weight: Tensor, rows: int) -> Tensor:
    """Return a weight in the layout that `onednn_linear` prefers for inputs of `rows` rows."""
    reorder = getattr(torch.ops.mkldnn, '_reorder_linear_weight', None)
    return weight if reorder is None else reorder(weight, rows)


@cache
def is_intel() -> bool:
    """Return whether this is an Intel processor and torch has MKL."""
    try:
        about = Path('/proc/cpuinfo').read_text(errors='replace')
    except OSError:  # not Linux
        about = platform.processor()
    return 'GenuineIntel' in about and torch.backends.mkl.is_available()


@cache
def has_bf16_linear() -> bool:
    """Return whether `onednn_linear` computes in bf16 on this processor."""
    supports = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return onednn_linear() is not None and supports is not None and bool(supports())


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """Return the input gradient of a softmax over the last axis, from its output `weights` and output gradient."""
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)


# --- OpenMP


@cache
def _openmp() -> ctypes.CDLL | None:
    """Return the GNU OpenMP library that torch uses: another library would start its own threads."""
    places = Path(torch.__file__).parent / 'lib', Path(torch.__file__).parents[1] / 'torch.libs'
    for library in (file for place in places for file in sorted(place.glob('libgomp*'))):
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            continue
    return None


@cache
def parallel_region() -> Callable[[int, int, int, int], None] | None:
    """Return OpenMP's `GOMP_parallel` (function, argument, threads, flags), or `None` without GNU OpenMP."""
    function = getattr(_openmp(), 'GOMP_parallel', None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function


def has_all_threads() -> bool:
    """Return whether a parallel region gets as many threads as torch expects.

    oneDNN divides its work among `torch.get_num_threads()` threads. If OpenMP starts fewer, part of the work is not
    done.
    """
    library = _openmp()
    if library is None:  # another OpenMP library: read the environment
        names = ('OMP_DYNAMIC', 'OMP_THREAD_LIMIT', 'OMP_MAX_ACTIVE_LEVELS')
        dynamic, *limits = (os.environ.get(name, '').strip() for name in names)
        return dynamic.lower() not in ('1', 'true') and not any(limits)
    if library.omp_get_dynamic() or library.omp_in_parallel():
        return False
    threads = torch.get_num_threads()
    return threads == 1 or (
        library.omp_get_max_active_levels() > 0 and library.omp_get_thread_limit() >= threads
    )


# --- memory


@cache
def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MB of freed memory for the next call.

    Otherwise every call returns the memory to the system and requests it again, which takes 3 to 10 % of the time.
    glibc keeps twice the size of the largest freed block below 32 MB, so this function allocates and frees one.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device='cpu')


@cache
def keep_freed_memory_of_training() -> None:
    """Make glibc keep up to 1 GB of freed memory: a backward pass frees hundreds of MB that the next step needs."""
    keep_freed_memory()
    library = _glibc()
    if library is not None:
        library.mallopt(_M_TRIM_THRESHOLD, 2**30)


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = [
        ('before', ctypes.c_size_t * 8),
        ('fordblks', ctypes.c_size_t),
        ('keepcost', ctypes.c_size_t),
    ]


_M_TRIM_THRESHOLD = -1  # of glibc's malloc.h


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _MallocInfo
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (OSError, TypeError, AttributeError):
        return None
    return library


def limit_free_memory(most: int) -> None:
    """Return the freed memory that glibc holds to the system if it exceeds `most` bytes.

    Calls of varying sizes fragment the heap. Without glibc 2.33 this does nothing.
    """
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > most:
        library.malloc_trim(0)
