"""Peak memory of a call, above what the process holds when nothing runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path('/proc/self/status')
_CLEAR = Path('/proc/self/clear_refs')
_MB = 2**20


def trim() -> None:
    """Gives memory that is free to the system, where the allocator can (glibc)."""
    gc.collect()
    # With another C library the peak counts from what the allocator keeps.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def can_reset_peak() -> bool:
    """Whether the system lets a process forget its peak (Linux)."""
    try:
        _CLEAR.write_text('5')
        return 'VmHWM' in _STATUS.read_text()
    except OSError:
        return False


def lifetime_peak() -> float:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_on_cpu(call: Callable[[], Any]) -> float:
    """Peak of resident memory during `call` above that before it, in MB (2**20 bytes)."""
    trim()
    _CLEAR.write_text('5')
    before = _status('VmRSS')
    call()
    return max(0.0, _status('VmHWM') - before) / _MB


def peak_on_gpu(call: Callable[[], Any]) -> float:
    """Peak of what torch allocated on the GPU during `call` above that before it, in MB (2**20 bytes)."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _MB


def _status(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'{_STATUS} says nothing of {name}')
