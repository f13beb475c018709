"""Process of a contestant or of a part of the GPU report: `python -m benchmarks.worker READ_FD WRITE_FD`.

It receives requests through a pipe and sends results. It exits when the pipe closes, also during a call, so that no
process keeps running when the main process dies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import queue
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.contestants import Contestant
from benchmarks.task import Task, milliseconds, peak_mb, trim

_LONGEST = 300
_KERNELS = 15  # in a profile


class Bench:
    """Requests that a process handles; each public method is a request.

    Args:
        threads: Threads of torch.
        is_alone: Whether other contestants have their own processes, so that GPU memory is freed between calls.
    """

    def __init__(self, threads: int, is_alone: bool = True) -> None:
        torch.set_num_threads(threads)
        self.is_alone = is_alone
        self.inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self.tasks: dict[str, Task] = {}
        self.repeats: dict[str, int] = {}

    def hello(self, library: str) -> str:
        """Import the library and return its version."""
        return getattr(importlib.import_module(library), '__version__', 'unknown')

    def run_part(self, name: str, **arguments: Any) -> None:
        """Run a part of the GPU report; see `gpu.part.run_part`."""
        part = importlib.import_module('benchmarks.gpu.part')
        part.run_part(name, inbox=self.inbox, **arguments)

    def prepare(
        self,
        key: str,
        contestant: Contestant,
        case: Case,
        options: Mapping[str, Any],
        min_ms: float,
    ) -> dict[str, Any]:
        """Build a task, warm it up and return its info; see `rounds.Contest`."""
        torch.manual_seed(0)
        module, _, function = contestant.builder.partition(':')
        build = getattr(importlib.import_module(module), function)
        task = self.tasks[key] = build(case, {**options, **contestant.options})
        task.run()
        taken = milliseconds(task.run, task.device) if min_ms else math.inf
        self.repeats[key] = max(1, math.ceil(min_ms / max(taken, 1e-3)))
        self._give_back()
        return {**task.info, 'has_maps': task.maps is not None}

    def save_maps(self, key: str, path: str) -> None:
        """Write the maps to a file for comparison by other processes."""
        torch.save(self._maps(key), path)

    def compare_maps(self, key: str, path: str) -> float | None:
        """Return the largest relative difference to the maps in a file; None if not finite."""
        theirs = torch.load(path, weights_only=True, mmap=True)
        mine = self._maps(key)
        shapes = [[tuple(x.shape) for x in maps] for maps in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f'the maps are {shapes[0]}, ours {shapes[1]}')
        worst = max((a - b).abs().max() / b.abs().max() for a, b in zip(mine, theirs))
        return worst.item() if worst.isfinite() else None

    def peak(self, key: str) -> float | None:
        """Return the increase of peak memory in a call, in MB."""
        return peak_mb(self.tasks[key].run, self.tasks[key].device)

    def sample(self, key: str) -> float:
        """Return the milliseconds of one call."""
        task = self.tasks[key]
        if self.is_alone and task.device == 'cuda':
            task.run()  # memory was freed after the last sample
        taken = milliseconds(task.run, task.device, self.repeats[key])
        self._give_back()
        return taken

    def info(self, key: str) -> dict[str, Any]:
        """Return the info and the details of a task."""
        task = self.tasks[key]
        return {**task.info, **(task.details() if task.details else {})}

    def profile(self, key: str) -> list[tuple[str, float, float]]:
        """Return name, milliseconds and share of the GPU kernels that take most of the time of a call."""
        task = self.tasks[key]
        task.run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            task.run()
            torch.cuda.synchronize()
        events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
        events.sort(key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in events)
        times = [(f'{e.key[:80]} x {e.count}', e.self_device_time_total) for e in events[:_KERNELS]]
        return [(name, time / 1000, time / total) for name, time in times]

    def release(self, key: str | None = None) -> None:
        """Release a task, or all tasks."""
        for name in [key] if key is not None else list(self.tasks):
            self.tasks.pop(name, None)
        trim()

    def _maps(self, key: str) -> list[torch.Tensor]:
        maps = self.tasks[key].maps
        return [x.float().cpu() for x in maps()] if maps else []

    def _give_back(self) -> None:
        if self.is_alone and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """Return type and message of an error in one line."""
    text = ' '.join(str(error).split()) or 'no message'
    return f'{type(error).__name__}: {text[:_LONGEST]}'


def serve(requests: Connection, answers: Connection, bench: Bench) -> None:
    """Handle requests until the pipe closes."""

    def listen() -> None:
        while True:
            try:
                bench.inbox.put(requests.recv())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = bench.inbox.get()
        try:
            answer = {'value': getattr(bench, request['do'])(**request['with'])}
        except Exception as error:  # libraries can raise any error: report it
            answer = {'error': one_line(error)}
        if 'error' in answer:
            gc.collect()  # free the memory of the failed call
        answers.send(answer)


def main() -> None:
    """Run the process."""
    ends = [int(number) for number in sys.argv[1:3]]
    for end in ends:
        os.set_inheritable(end, False)  # compiler processes must not inherit the pipe
    with contextlib.suppress(OSError):  # if memory runs out, kill this process, not the main one
        Path('/proc/self/oom_score_adj').write_text('1000')
    requests, answers = Connection(ends[0], writable=False), Connection(ends[1], readable=False)
    serve(requests, answers, Bench(int(os.environ['OMP_NUM_THREADS'])))


if __name__ == '__main__':
    main()
