"""Part `backbones`: our backbone and those of timm and torchvision, eager and compiled, inference and training."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.cases import MODES, Case
from benchmarks.contestants import Contestant, ours, peer
from benchmarks.gpu.part import PartOptions
from benchmarks.processes import Pool
from benchmarks.results import Results
from benchmarks.rounds import Contest, Entry
from benchmarks.weights import write_weights

_SIZES = (((512, 512), 8, 16), ((512, 512), 16, 16), ((800, 1344), 16, 2))
_SECONDS_TO_MEASURE = 6  # a case
_SECONDS_TO_PREPARE = 60
_SECONDS_OF_AN_ANSWER = 20.0
_ROUNDS = 5


def run(options: PartOptions, results: Results) -> None:
    """Measure the small model first, then the larger one in the remaining time."""
    with options.pool(is_local=False) as pool:
        groups = [(cases, _contest(cases, options, pool, results)) for cases in _cases(options)]
        ready = [_prepare(*group, options, pool) for group in groups if options.inbox]
        options.wait_for_turn()
        for number, (cases, contest) in enumerate(groups):
            if (ready and ready[number]) or _prepare(cases, contest, options, pool):
                _measure(cases, contest, options, results)
            else:
                results.fail(f'backbones {cases[0].arch}', 'no time was left')


def _cases(options: PartOptions) -> list[list[Case]]:
    common: dict[str, Any] = {'dtype': 'bf16', 'device': options.device}
    if options.quick:
        return [[Case((64, 64), 8, mode, arch='nano', **common) for mode in MODES]]
    sizes = list(product(_SIZES, MODES))
    return [
        [Case(size, window, mode, arch, batch, **common) for (size, window, batch), mode in sizes]
        for arch in ('tiny', 'base')
    ]


def _contestants(case: Case, options: PartOptions) -> list[Contestant]:
    found = [ours('auto'), peer('timm'), peer('torchvision')]
    if options.is_cuda:  # on a CPU torch.compile would need a C++ compiler
        found += [ours('auto', compiled=True), peer('timm', compiled=True)]
    return found


def _contest(cases: Sequence[Case], options: PartOptions, pool: Pool, results: Results) -> Contest:
    weights = write_weights(cases[0].arch, pool.folder / f'{cases[0].arch}.pth')
    entries = [Entry(one, case) for case in cases for one in _contestants(case, options)]
    min_ms = 0.0 if options.quick else 100.0
    return Contest(pool, entries, results, {'weights': str(weights)}, min_ms)


def _prepare(cases: Sequence[Case], contest: Contest, options: PartOptions, pool: Pool) -> bool:
    """Prepare all contestants in parallel and end late ones; return whether there was enough time."""
    pool.timeout = 1800.0
    pool.deadline = options.deadline - 2 * len(cases) * _SECONDS_TO_MEASURE
    if options.is_cuda and pool.deadline - time.monotonic() < _SECONDS_TO_PREPARE:
        return False
    parallel = (os.cpu_count() or 1) if options.is_cuda else 1
    contest.prepare(parallel, compiled_trainings=6 if cases[0].arch == 'tiny' else 3)
    return True


def _measure(
    cases: Sequence[Case], contest: Contest, options: PartOptions, results: Results
) -> None:
    pool = contest.pool
    pool.timeout, pool.deadline = _SECONDS_OF_AN_ANSWER, options.deadline
    for case in cases:
        if options.left < _SECONDS_TO_MEASURE and not options.quick:
            results.fail(str(case), 'no time was left')
            continue
        contest.measure([case], 2 if options.quick else _ROUNDS)
        results.add(contest.row(case))
    for entry in list(contest.samples):
        if options.is_cuda and options.left > _SECONDS_TO_MEASURE:
            kernels = contest.ask(entry, 'profile')
            if kernels:
                results.add({'profile': entry.name, 'case': str(entry.case), 'kernels': kernels})
