"""Times calls side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from swinv2_mm.benchmarks.gpu.part import PartOptions
from swinv2_mm.benchmarks.task import repeats_for

Call = Callable[[], Any]


def milliseconds(call: Call, repeats: int, options: PartOptions) -> float:
    """Time of one call, averaged over `repeats` in a row: by events of the device, or by the clock on a CPU."""
    if not options.is_cuda:
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1000 * (time.perf_counter() - begin) / repeats
    begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begins.record()
    for _ in range(repeats):
        call()
    ends.record()
    ends.synchronize()
    return begins.elapsed_time(ends) / repeats


def interleaved(
    calls: Mapping[str, Call], options: PartOptions, rounds: int, min_seconds: float
) -> dict[str, list[float]]:
    """Time all calls in each of several rounds, in a new order each time.

    Args:
        calls: By name; warmed up already.
        options: Where they run.
        rounds: Number of rounds.
        min_seconds: What a sample lasts at least; shorter calls are repeated.

    Returns:
        Samples in milliseconds, one per round.
    """
    repeats = {}
    for name, call in calls.items():
        milliseconds(call, 1, options)
        repeats[name] = repeats_for(milliseconds(call, 1, options) / 1000, min_seconds)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(milliseconds(calls[name], repeats[name], options))
    return samples
