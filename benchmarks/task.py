"""A call to measure: its time and its increase of peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_MB = 2**20


@dataclass
class Task:
    """A case that is ready to run.

    Attributes:
        run: Runs the call once.
        device: `'cpu'` or `'cuda'`.
        maps: Computes the tensors to compare between contestants, or None.
        info: Information for the results.
        details: Measures additional information, for our backends only.
    """

    run: Callable[[], Any]
    device: str
    maps: Callable[[], list[Tensor]] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    details: Callable[[], dict[str, Any]] | None = None


def autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass in `dtype`; weights stay in fp32, as in mixed-precision training."""
    if dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=DTYPES[dtype])


def milliseconds(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Return the time of one call, averaged over `repeats` calls between synchronisations."""
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return 1000 * (time.perf_counter() - start) / repeats


def trim() -> None:
    """Return free memory to the system, if the allocator supports it (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_mb(call: Callable[[], Any], device: str) -> float | None:
    """Return the increase of peak memory in `call`, in MB (2**20 bytes); None if it cannot be measured.

    On a GPU the memory of torch's allocator, otherwise the resident memory of the process (Linux).
    """
    trim()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / _MB
    try:
        _CLEAR.write_text('5')  # reset the peak
        resident = _status('VmRSS')
    except OSError:
        return None
    call()
    return max(0.0, _status('VmHWM') - resident) / _MB


def _status(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'{_STATUS} lacks {name}')
