"""Part `backbones`: ours beside those of timm and torchvision, eager and compiled, in inference and training.

Each contestant has a process of its own, and each that is compiled one for every case: the processes compile side by
side, and then take turns.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.benchmarks.cases import Case
from swinv2_mm.benchmarks.contestants import Contestant, ours, peer
from swinv2_mm.benchmarks.gpu.part import PartOptions, Sink
from swinv2_mm.benchmarks.processes import ContestantError, Worker
from swinv2_mm.benchmarks.summary import fastest, median, pairwise_ratio, quartiles
from swinv2_mm.benchmarks.weights import write_weights

_PEERS = ('timm', 'torchvision')
_COMPILED_PEERS = ('timm',)
_SIZES = (((512, 512), 8, 16), ((512, 512), 16, 16), ((800, 1344), 16, 2))
_SECONDS_TO_MEASURE = 6  # a case
_SECONDS_TO_PREPARE = 60
_SECONDS_OF_AN_ANSWER = 20.0
_ROUNDS = 5


@dataclass
class _Entry:
    """A contestant in a case.

    Attributes:
        contestant: Who.
        case: What.
        name: In the results.
        worker: The process, once there is one.
    """

    contestant: Contestant
    case: Case
    name: str
    worker: Worker | None = None

    @property
    def title(self) -> str:
        """For messages."""
        return f'{self.name}, {self.key}'

    @property
    def key(self) -> str:
        """Of the task in its process."""
        return f'{self.case.arch} {self.case}'

    def ask(self, what: str, **arguments: Any) -> Any:
        """Ask its process; see `worker.Bench`."""
        if self.worker is None:
            raise ContestantError('it has no process')
        return self.worker.ask(what, key=self.key, **arguments)


def run(options: PartOptions, sink: Sink) -> None:
    """Measure the small model first, then the larger one in the time that is left."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        groups = [_Group(cases, options, sink, Path(folder)) for cases in _cases(options)]
        for group in groups:
            stack.callback(group.close)
        waiting = [group for group in groups if options.is_early and group.prepare()]
        options.wait_for_turn()
        for group in groups:
            if group in waiting or group.prepare():
                group.measure()
            else:
                sink.fail(f'backbones {group.cases[0].arch}', 'no time was left')


def _cases(options: PartOptions) -> list[list[Case]]:
    common: dict[str, Any] = {'dtype': 'bf16', 'device': options.device}
    if options.quick:
        modes = ('eval', 'train')
        return [[Case((64, 64), 8, mode, arch='nano', **common) for mode in modes]]
    return [
        [
            Case(size, window, mode, arch=arch, batch=batch, **common)
            for (size, window, batch), mode in product(_SIZES, ('eval', 'train'))
        ]
        for arch in ('tiny', 'base')
    ]


class _Group:
    """Cases of one model, whose contestants are prepared at the same time.

    Args:
        cases: The cases, in the order of their worth.
        options: How the part runs.
        sink: Where rows go.
        folder: For temporary files.
    """

    def __init__(
        self, cases: Sequence[Case], options: PartOptions, sink: Sink, folder: Path
    ) -> None:
        self.cases, self.options, self.sink, self.folder = cases, options, sink, folder
        self.weights = folder / f'{cases[0].arch}.pth'
        write_weights(cases[0].arch, self.weights)
        self.workers: list[Worker] = []
        self.entries = [entry for case in cases for entry in self._entries_of(case)]

    def _entries_of(self, case: Case) -> Iterable[_Entry]:
        eager = [ours('auto'), *(peer(name) for name in _PEERS)]
        compiled = [ours('auto'), *(peer(name) for name in _COMPILED_PEERS)]
        if case.mode == 'eval':
            compiled.append(ours('triton'))  # which has more than the attention in kernels of ours
        for contestant in eager:
            yield _Entry(contestant, case, _short_name(contestant))
        if self.options.is_cuda:  # on a CPU the compiler of torch would need one of C++
            for contestant in compiled:
                options = {**contestant.options, 'compile': True}
                name = f'{_short_name(contestant)}_compiled'
                unique = f'{name} {case.arch} {case}'.replace(' ', '_')
                yield _Entry(replace(contestant, name=unique, options=options), case, name)

    def measure(self) -> None:
        """Measure case by case."""
        for case in self.cases:
            if self.options.left < _SECONDS_TO_MEASURE and not self.options.quick:
                self.sink.fail(f'backbones {case.arch} {case}', 'no time was left')
                continue
            ready = [entry for entry in self.entries if entry.case == case and entry.worker]
            self._measure_case(ready)
        for entry in self.entries:
            if self.options.is_cuda and self.options.left > _SECONDS_TO_MEASURE and entry.worker:
                self._profile(entry)

    def prepare(self) -> bool:
        """Start all processes and let each build, compile and warm up; who is late is ended.

        Returns:
            Whether there was time for it.
        """
        deadline = self.options.deadline - 2 * len(self.cases) * _SECONDS_TO_MEASURE
        if self.options.is_cuda and deadline - time.monotonic() < _SECONDS_TO_PREPARE:
            return False
        # While the backward pass is compiled, what the forward pass has stored fills much memory.
        trainings = threading.Semaphore(6 if self.cases[0].arch == 'tiny' else 3)
        by_process: dict[str, list[_Entry]] = {}
        for entry in self.entries:
            by_process.setdefault(entry.contestant.name, []).append(entry)

        def start(entries: Sequence[_Entry]) -> None:
            worker = None
            for entry in entries:
                try:
                    if worker is None or not worker.is_alive:
                        worker = self._worker(entry.contestant, deadline)
                    compiles = entry.contestant.options.get('compile')
                    is_large = compiles and entry.case.mode == 'train'
                    with trainings if is_large else contextlib.nullcontext():
                        worker.timeout = max(1.0, deadline - time.monotonic())
                        worker.ask(
                            'prepare',
                            key=entry.key,
                            builder=entry.contestant.builder,
                            case=entry.case.to_dict(),
                            options={'weights': str(self.weights), **entry.contestant.options},
                            min_seconds=0.0 if self.options.quick else 0.1,
                        )
                    worker.timeout = _SECONDS_OF_AN_ANSWER
                    entry.worker = worker
                except ContestantError as error:
                    self.sink.fail(entry.title, str(error))

        parallel = os.cpu_count() if self.options.is_cuda else 1
        with ThreadPoolExecutor(parallel) as executor:
            for future in [executor.submit(start, entries) for entries in by_process.values()]:
                future.result()
        return True

    def _worker(self, contestant: Contestant, deadline: float) -> Worker:
        device = self.cases[0].device
        timeout = max(1.0, deadline - time.monotonic())
        log = self.folder / f'{contestant.name.replace(":", "_")}.log'
        threads = 1 if self.options.is_cuda else torch.get_num_threads()
        worker = Worker(contestant, threads, device, timeout, log)
        self.workers.append(worker)
        return worker

    def _measure_case(self, entries: Sequence[_Entry]) -> None:
        """Compare the maps, measure memory, then time everybody in interleaved rounds."""
        maps = self.folder / 'maps.pth'
        samples: dict[str, list[float]] = {entry.name: [] for entry in entries}
        peaks, differences = dict[str, float](), dict[str, float | None]()

        def attempt(entry: _Entry, what: str, **arguments: Any) -> Any:
            if entry.name not in samples:
                return None
            try:
                return entry.ask(what, **arguments)
            except ContestantError as error:
                self.sink.fail(entry.title, str(error))
                samples.pop(entry.name)
                return None

        for entry in entries:
            peak = attempt(entry, 'peak')
            if peak is not None:
                peaks[entry.name] = peak
        compares = entries and entries[0].case.mode == 'eval'
        for entry in entries if compares else []:
            if not maps.exists():
                attempt(entry, 'save_maps', path=str(maps))
            else:
                compared = attempt(entry, 'compare_maps', path=str(maps))
                differences[entry.name] = compared and compared['difference']
        maps.unlink(missing_ok=True)
        order, shuffle = list(entries), random.Random(0).shuffle
        for _ in range(2 if self.options.quick else _ROUNDS):
            shuffle(order)
            for entry in order:
                sample = attempt(entry, 'sample')
                if sample is not None:
                    samples[entry.name].append(sample)
        if samples:
            self.sink.add(_row(entries[0].case, samples, peaks, differences))

    def _profile(self, entry: _Entry) -> None:
        """Which kernels of the device take the time of a call."""
        try:
            kernels = entry.ask('profile')
            self.sink.add({'profile': entry.name, 'case': entry.key, 'kernels': kernels})
        except ContestantError as error:
            self.sink.fail(f'profile of {entry.title}', str(error))

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close(kill=True)


def _short_name(contestant: Contestant) -> str:
    """Name in the tables: that of the backend only where it is not the default."""
    return contestant.name.removesuffix(':auto').replace(':', '_')


def _row(
    case: Case,
    samples: Mapping[str, list[float]],
    peaks: Mapping[str, float],
    differences: Mapping[str, float | None],
) -> dict[str, Any]:
    medians = {name: median(taken) for name, taken in samples.items()}
    mine = min(
        (name for name in medians if name.startswith('ours')),
        key=lambda name: medians[name],
        default=None,
    )
    ratios = {
        name: pairwise_ratio(taken, samples[mine])
        for name, taken in samples.items()
        if mine and not name.startswith('ours')
    }
    first = fastest(ratios)
    return {
        'arch': case.arch,
        'input': case.size,
        'window': case.window,
        'batch': case.batch,
        'mode': case.mode,
        'dtype': case.dtype,
        'ms': medians,
        'quartiles_ms': {name: quartiles(taken) for name, taken in samples.items()},
        'peak_mb': {name: peaks[name] for name in samples},
        'differences': {name: value for name, value in differences.items() if name in samples},
        'ours': mine,
        'images_per_s': 1000 * case.batch / medians[mine] if mine else None,
        'ratios': ratios,
        'fastest_peer': first,
        'ratio_to_fastest': ratios[first] if first else None,
        'memory_ratio': peaks[mine] / peaks[first] if mine and first else None,
    }
