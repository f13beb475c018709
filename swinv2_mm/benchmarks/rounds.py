"""Interleaved rounds: in each, every contestant runs every case once, one after another in a shuffled order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swinv2_mm.benchmarks.cases import Case
from swinv2_mm.benchmarks.contestants import PRODUCTS, Contestant
from swinv2_mm.benchmarks.processes import ContestantError, Pool, Worker


@dataclass(frozen=True)
class Entry:
    """A contestant and a case."""

    contestant: Contestant
    case: Case

    @property
    def key(self) -> str:
        """Name of the task in the contestant's process."""
        return str(self.case)

    @property
    def name(self) -> str:
        """Name of the contestant in results."""
        return self.contestant.name


@dataclass
class Measured:
    """What a group of entries gave.

    Attributes:
        samples: Milliseconds per round.
        peaks: Peak memory of a call in MB.
        infos: What the contestants said about their tasks.
        differences: Largest relative difference of the stage maps to ours; None where a map is not finite.
        failures: Why an entry has no samples.
    """

    samples: dict[Entry, list[float]] = field(default_factory=dict)
    peaks: dict[Entry, float] = field(default_factory=dict)
    infos: dict[Entry, dict[str, Any]] = field(default_factory=dict)
    differences: dict[Entry, float | None] = field(default_factory=dict)
    failures: dict[Entry, str] = field(default_factory=dict)


def measure(
    pool: Pool,
    entries: Sequence[Entry],
    rounds: int,
    min_seconds: float,
    options: dict[str, Any],
    compare: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Prepares all entries, measures memory, then times them in interleaved rounds.

    An entry that fails is left out from then on; the others go on.

    Args:
        pool: The processes.
        entries: Who runs what; ours before the others.
        rounds: Number of rounds.
        min_seconds: What a sample should last at least; short calls are repeated.
        options: What builders get beside the contestant's own options.
        compare: Whether to compare stage maps with ours.
        tell: Told what goes on.
    """
    found = Measured()
    prepared: dict[Entry, Worker] = {}

    def ready(entry: Entry) -> Worker:
        """The process of an entry, with its task; once more if the process that had it died over another task."""
        worker = pool.worker(entry.contestant)
        if prepared.get(entry) is not worker:
            found.infos[entry] = worker.ask(
                'prepare',
                key=entry.key,
                builder=entry.contestant.builder,
                case=entry.case.to_dict(),
                options={**options, **entry.contestant.options},
                min_seconds=min_seconds,
            )
            prepared[entry] = worker
        return worker

    def attempt(entry: Entry, what: str, **arguments: Any) -> Any:
        if entry in found.failures:
            return None
        try:
            return ready(entry).ask(what, key=entry.key, **arguments)
        except ContestantError as error:
            found.failures[entry] = str(error)
            found.samples.pop(entry, None)
            tell(f'  {entry.name}, {entry.case}: {error}')
            _forget(pool, entry)
            return None

    for entry in entries:
        attempt(entry, 'touch')
    if compare:
        _compare(pool, entries, found, attempt)
    for entry in entries:
        peak = attempt(entry, 'peak')
        if peak is not None:
            found.peaks[entry] = peak
    order = list(entries)
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        shuffle(order)
        for entry in order:
            sample = attempt(entry, 'sample')
            if sample is not None:
                found.samples.setdefault(entry, []).append(sample)
        tell(f'  round {number + 1} of {rounds}')
    pool.release()
    return found


def _compare(
    pool: Pool, entries: Sequence[Entry], found: Measured, attempt: Callable[..., Any]
) -> None:
    """Compares the stage maps of every case with those of our first backend."""
    for case in dict.fromkeys(entry.case for entry in entries):
        mine = [entry for entry in entries if entry.case == case and entry.name not in PRODUCTS]
        if not mine or not mine[0].contestant.is_ours or mine[0] in found.failures:
            continue
        path = pool.folder / 'maps.pth'
        attempt(mine[0], 'save_maps', path=str(path))
        for entry in mine[1:]:
            if path.exists():
                compared = attempt(entry, 'compare_maps', path=str(path))
                if compared is not None:
                    found.differences[entry] = compared['difference']
        path.unlink(missing_ok=True)


def _forget(pool: Pool, entry: Entry) -> None:
    """Frees what a failed entry holds, if its process still lives."""
    worker = pool.running(entry.contestant)
    if worker is not None:
        with contextlib.suppress(ContestantError):
            worker.ask('release', key=entry.key)
