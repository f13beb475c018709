"""The process of a contestant: `python -m swinv2_mm.benchmarks.worker READ_FD WRITE_FD`.

It takes requests from a pipe and answers them. It ends when the other end of the pipe closes, even in the middle
of a call, so that nothing is left behind when the main process dies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.benchmarks import memory
from swinv2_mm.benchmarks.task import Task, repeats_for, seconds

_LONGEST = 300
_KERNELS = 15  # in a profile


class Bench:
    """What a contestant can be asked to do; each public method is a request.

    Args:
        threads: Threads of torch.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.tasks: dict[str, Task] = {}
        self.repeats: dict[str, int] = {}
        self.first_peaks: dict[str, float] = {}

    def hello(self, library: str | None) -> dict[str, Any]:
        """Imports the library; says its version and how memory can be measured."""
        version = None
        if library is not None:
            version = getattr(importlib.import_module(library), '__version__', 'unknown')
        return {'version': version, 'can_reset_peak': memory.can_reset_peak()}

    def prepare(
        self,
        key: str,
        builder: str,
        case: Mapping[str, Any],
        options: Mapping[str, Any],
        min_seconds: float,
    ) -> dict[str, Any]:
        """Builds a task and warms it up.

        Args:
            key: Name of the task from now on.
            builder: `module:function`.
            case: What to measure.
            options: What else the builder needs.
            min_seconds: What a sample should last at least.

        Returns:
            What is known about the task, and how often a sample repeats it.
        """
        module, function = builder.split(':')
        torch.manual_seed(0)
        task = getattr(importlib.import_module(module), function)(case, options)
        before = memory.lifetime_peak()
        seconds(task)
        self.first_peaks[key] = max(0.0, memory.lifetime_peak() - before) / 2**20
        self.tasks[key] = task
        self.repeats[key] = repeats_for(seconds(task), min_seconds)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return {**task.info, 'repeats': self.repeats[key]}

    def save_maps(self, key: str, path: str) -> None:
        """Writes the stage maps to a file, for others to compare with."""
        torch.save([x.float().cpu() for x in self._maps(key)], path)

    def compare_maps(self, key: str, path: str) -> dict[str, float | None]:
        """The largest difference to the stage maps in a file, over the largest value of a map; None if not finite.

        Raises:
            ValueError: The maps have other shapes.
        """
        theirs = torch.load(path, weights_only=True, mmap=True)
        mine = self._maps(key)
        shapes = [[tuple(x.shape) for x in maps] for maps in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f'the stage maps are {shapes[0]}, ours {shapes[1]}')
        pairs = [(a.float().cpu(), b) for a, b in zip(mine, theirs)]
        worst = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max()
        return {'difference': worst.item() if worst.isfinite() else None}

    def touch(self, key: str) -> None:
        """Says whether a task is ready."""
        self.tasks[key]

    def peak(self, key: str) -> float:
        """Peak memory of a call above that before it, in MB."""
        task = self.tasks[key]
        if task.device == 'cuda':
            return memory.peak_on_gpu(task.run)
        if memory.can_reset_peak():
            return memory.peak_on_cpu(task.run)
        return self.first_peaks[key]

    def sample(self, key: str) -> float:
        """Milliseconds of one call."""
        task = self.tasks[key]
        if task.device == 'cuda':
            task.run()  # the cache was given back after the last sample
        taken = seconds(task, self.repeats[key])
        if task.device == 'cuda':
            torch.cuda.empty_cache()  # the others need it
        return 1000 * taken

    def profile(self, key: str) -> list[tuple[str, float, float]]:
        """Name, milliseconds and share of the kernels of a GPU that a call spends most time in."""
        task = self.tasks[key]
        task.run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            task.run()
            torch.cuda.synchronize()
        events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
        events.sort(key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in events)
        return [
            (
                f'{event.key[:80]} x {event.count}',
                event.self_device_time_total / 1000,
                event.self_device_time_total / total,
            )
            for event in events[:_KERNELS]
        ]

    def release(self, key: str | None = None) -> None:
        """Forgets a task, or all of them."""
        for name in [key] if key is not None else list(self.tasks):
            self.tasks.pop(name, None)
        memory.trim()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _maps(self, key: str) -> list[torch.Tensor]:
        maps = self.tasks[key].maps
        if maps is None:
            raise ValueError(f'{key} has no stage maps')
        return maps()


def one_line(error: BaseException) -> str:
    """Kind and message of an error, in one line."""
    text = ' '.join(str(error).split()) or 'no message'
    return f'{type(error).__name__}: {text[:_LONGEST]}'


def serve(requests: Connection, answers: Connection, bench: Bench) -> None:
    """Answers requests until the pipe closes."""
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        while True:
            try:
                waiting.put(requests.recv())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = waiting.get()
        try:
            answer = {'value': getattr(bench, request['do'])(**request['with'])}
        except Exception as error:  # whatever a library raises: it is the answer
            answer = {'error': one_line(error)}
        if 'error' in answer:
            gc.collect()  # what the failed call held
        answers.send(answer)


def _volunteer() -> None:
    """Asks the kernel to end this process first, and not the main one, when memory runs out (Linux)."""
    with contextlib.suppress(OSError):
        Path('/proc/self/oom_score_adj').write_text('1000')


def main() -> None:
    """Runs the process."""
    ends = [int(number) for number in sys.argv[1:3]]
    for end in ends:
        os.set_inheritable(
            end, False
        )  # compilers that a library starts must not hold the pipe open
    _volunteer()
    threads = int(os.environ['OMP_NUM_THREADS'])
    requests, answers = Connection(ends[0], writable=False), Connection(ends[1], readable=False)
    serve(requests, answers, Bench(threads))


if __name__ == '__main__':
    main()
