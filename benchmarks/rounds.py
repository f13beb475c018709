"""Interleaved rounds: in each round every contestant runs every case once, in a shuffled order."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Case
from benchmarks.contestants import PRODUCTS, Contestant
from benchmarks.processes import ContestantError, Local, Pool, Worker, process_name
from benchmarks.results import Results, compare, median, pairwise_ratio, say


@dataclass(frozen=True)
class Entry:
    """A contestant and a case."""

    contestant: Contestant
    case: Case

    @property
    def name(self) -> str:
        """Name of the contestant in results."""
        return self.contestant.name

    def __str__(self) -> str:
        return f'{self.name}, {self.case}'


class Contest:
    """Entries that are measured together. Entries that fail are left out of the following steps.

    Args:
        pool: The processes.
        entries: The entries; in each case our backends first.
        results: Receives failures.
        options: Additional options of builders.
        min_ms: Minimum time of a sample, in milliseconds; shorter calls are repeated.

    Attributes:
        samples: Milliseconds per round of each entry that has not failed.
        peaks: Peak memory of a call in MB.
        infos: Information of the tasks.
        differences: Largest relative difference of the maps to ours; None if a map is not finite.
    """

    def __init__(
        self,
        pool: Pool,
        entries: Sequence[Entry],
        results: Results,
        options: Mapping[str, Any],
        min_ms: float,
    ) -> None:
        self.pool, self.results, self.options, self.min_ms = pool, results, dict(options), min_ms
        self.samples: dict[Entry, list[float]] = {entry: [] for entry in entries}
        self.peaks: dict[Entry, float | None] = {}
        self.infos: dict[Entry, dict[str, Any]] = {}
        self.differences: dict[Entry, float | None] = {}
        self._workers: dict[Entry, Worker | Local] = {}

    def ask(self, entry: Entry, what: str | None, **arguments: Any) -> Any:
        """Call a method of `worker.Bench` (None: only prepare the task); return None after the first failure."""
        if entry not in self.samples:
            return None
        key = f'{entry.case} {entry.name}'
        try:
            worker = self._ready(entry, key)
            return worker.ask(what, self.pool.seconds, key=key, **arguments) if what else None
        except ContestantError as error:
            self.results.fail(str(entry), str(error))
            self.samples.pop(entry)
            left = self._workers.get(entry)
            if left is not None and left.is_alive:  # free the memory of the entry
                with contextlib.suppress(ContestantError):
                    left.ask('release', self.pool.seconds, key=key)
            return None

    def _ready(self, entry: Entry, key: str) -> Worker | Local:
        """Return the process of an entry with its task; restart it if it died in another task."""
        worker = self.pool.worker(entry.contestant, entry.case)
        if self._workers.get(entry) is not worker:
            self._workers[entry] = worker
            self.infos[entry] = worker.ask(
                'prepare',
                self.pool.seconds,
                key=key,
                contestant=entry.contestant,
                case=entry.case,
                options=self.options,
                min_ms=self.min_ms,
            )
        return worker

    def prepare(self, parallel: int = 1, compiled_trainings: int = 1) -> None:
        """Start the processes and build, compile and warm up their tasks, `parallel` at a time.

        Compiling a backward pass takes much memory: at most `compiled_trainings` at a time.
        """
        slots = threading.Semaphore(compiled_trainings)
        by_process: dict[str, list[Entry]] = {}
        for entry in self.samples:
            by_process.setdefault(process_name(entry.contestant, entry.case), []).append(entry)

        def start(entries: Sequence[Entry]) -> None:
            for entry in entries:
                is_large = entry.contestant.compiles and entry.case.mode == 'train'
                with slots if is_large else contextlib.nullcontext():
                    self.ask(entry, None)

        if parallel == 1:  # builders in this process run in its main thread
            list(map(start, by_process.values()))
            return
        executor = ThreadPoolExecutor(parallel)
        try:
            list(executor.map(start, by_process.values()))
        except BaseException:
            self.pool.close()  # pending requests fail
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    def measure(self, cases: Sequence[Case], rounds: int, end: float = math.inf) -> None:
        """Compare the maps, measure memory, then time all entries of some cases in interleaved rounds.

        After the first round, no round starts that would end after `end` (`time.monotonic`).
        """
        entries = [entry for entry in self.samples if entry.case in cases]
        for case in cases:
            if case.mode == 'eval':
                self._compare([entry for entry in entries if entry.case == case])
        for entry in entries:
            self.peaks[entry] = self.ask(entry, 'peak')
        shuffle = random.Random(0).shuffle
        for number in range(rounds):
            begin = time.monotonic()
            shuffle(entries)
            for entry in entries:
                sample = self.ask(entry, 'sample')
                if sample is not None:
                    self.samples[entry].append(sample)
            say(f'  round {number + 1} of {rounds}')
            if 2 * time.monotonic() - begin > end:
                break

    def _compare(self, entries: Sequence[Entry]) -> None:
        """Compare the maps of a case to those of our first backend."""
        entries = [entry for entry in entries if self.infos.get(entry, {}).get('has_maps')]
        if not entries or not entries[0].name.startswith('ours'):
            return
        path = self.pool.folder / 'maps.pth'
        self.ask(entries[0], 'save_maps', path=str(path))
        for entry in entries[1:] if entries[0] in self.samples else []:
            difference = self.ask(entry, 'compare_maps', path=str(path))
            if entry in self.samples:
                self.differences[entry] = difference
                if difference is None:
                    self.results.fail(str(entry), 'a map, or one of ours, is not finite')
        path.unlink(missing_ok=True)

    def row(self, case: Case, work: Mapping[str, float] | None = None) -> dict[str, Any] | None:
        """Return the results of a case, or None; `work` (`gflops` and `gb` of a call) adds shares of rates."""
        ran = {e.name: e for e in self.samples if e.case == case and e.name not in PRODUCTS}
        samples = {name: self.samples[entry] for name, entry in ran.items() if self.samples[entry]}
        if not samples:
            return None
        row = compare(samples, {name: self.peaks.get(ran[name]) for name in samples})
        mine = row['ours'] and samples[row['ours']]
        for entry, taken in self.samples.items():
            if work and mine and taken and entry.name in PRODUCTS:
                row['samples_ms'][entry.name] = taken
                unit, amount = (self.infos[entry][key] for key in ('unit', 'amount'))
                row[f'{entry.name}_{unit}_per_s'] = 1000 * amount / median(taken)
                row[PRODUCTS[entry.name]] = pairwise_ratio(taken, mine) * work[unit] / amount
        losses = {name: self.infos[ran[name]].get('loss') for name in samples}
        return {
            **{key: getattr(case, key) for key in ('task', 'mode', 'arch', 'window', 'batch')},
            **{'dtype': case.dtype, 'device': case.device, 'input': case.size},
            **row,
            **(work or {}),
            'images_per_s': {n: 1000 * case.batch / ms for n, ms in row['ms'].items()},
            'differences': {e.name: d for e, d in self.differences.items() if e.case == case},
            **({'losses': losses} if any(losses.values()) else {}),
        }
