"""What a contestant makes of a case: something to call, and what is known about it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

AUTOCAST = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass
class Task:
    """A case, ready to run.

    Attributes:
        run: Does the work once.
        maps: Computes the stage maps, `(B, C_i, H_i, W_i)` each; None where there are none to compare.
        device: `'cpu'` or `'cuda'`.
        info: What the results should say about it.
    """

    run: Callable[[], Any]
    maps: Callable[[], list[Tensor]] | None
    device: str
    info: dict[str, Any] = field(default_factory=dict)


def autocast(device: str, dtype: str) -> AbstractContextManager[Any]:
    """The context of a forward pass in `dtype`: weights stay in fp32, as in mixed-precision training."""
    if dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=AUTOCAST[dtype])


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == 'cuda':
        torch.cuda.synchronize()


def seconds(task: Task, repeats: int = 1) -> float:
    """Time of one call, in seconds, averaged over `repeats` in a row."""
    synchronize(task.device)
    start = time.perf_counter()
    for _ in range(repeats):
        task.run()
    synchronize(task.device)
    return (time.perf_counter() - start) / repeats


def repeats_for(call_seconds: float, min_seconds: float) -> int:
    """How many calls last at least `min_seconds`; 1 at least."""
    return max(1, math.ceil(min_seconds / max(call_seconds, 1e-6)))
