"""The benchmark of the backbone: what `tools/analysis_tools/benchmark_backbone.py` runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from swinv2_mm.benchmarks.cases import Case, grid, parse_size
from swinv2_mm.benchmarks.contestants import BACKBONE_PEERS, Contestant, ours, peer, products
from swinv2_mm.benchmarks.options import Settings, sort_out
from swinv2_mm.benchmarks.processes import Pool
from swinv2_mm.benchmarks.report import Outputs, Report, say
from swinv2_mm.benchmarks.results import add_factors, make_header, make_row
from swinv2_mm.benchmarks.roofline import METHOD, count_flops
from swinv2_mm.benchmarks.rounds import Entry, Measured, measure
from swinv2_mm.benchmarks.weights import write_weights


def compare_backbones(args: argparse.Namespace, outputs: Outputs) -> None:
    """Measures what the command line asks for.

    Raises:
        ValueError: An option is out of range.
    """
    settings = Settings.of(args)
    cases, sweeps = _plan(args, settings)
    backends = [ours(name) for name in dict.fromkeys(args.backends)]
    names, absent = sort_out([*args.peers, *args.sweep_peers], BACKBONE_PEERS)
    for name, why in absent.items():
        say(f'{name} is absent: {why}')
    peers = [peer(name) for name in names if name in args.peers]
    if args.compile_peers:
        peers += [peer(name, compiled=True) for name in names if name in args.peers]
    header = make_header(
        absent, {**asdict(settings), 'flops': METHOD}, settings.threads, settings.device
    )
    report = Report(header, outputs)
    with settings.pool() as pool:
        weights = pool.folder / 'weights.pth'
        write_weights(settings.arch, weights)
        run = _Run(settings, pool, {'weights': str(weights)})
        for case in cases:
            report.add(run.rows([case], [*backends, *peers]), pool)
        for kind, swept in sweeps.items():
            beside = [peer(name) for name in names if name in args.sweep_peers]
            for backend in backends:
                for mode in args.mode:
                    of_mode = [replace(case, mode=mode) for case in swept]
                    rows = run.rows(of_mode, [backend, *beside])
                    add_factors(rows, kind)
                    report.add(rows, pool)
    report.finish()


class _Run:
    """Measures groups of cases."""

    def __init__(self, settings: Settings, pool: Pool, options: dict[str, Any]) -> None:
        self.settings, self.pool, self.options = settings, pool, options

    def rows(
        self, cases: Sequence[Case], contestants: Sequence[Contestant]
    ) -> list[dict[str, Any]]:
        """Measures cases in the same rounds; returns a row for each case and backend of ours."""
        say(f'{", ".join(map(str, cases))}: {", ".join(c.name for c in contestants)}')
        entries = [Entry(contestant, case) for case in cases for contestant in contestants]
        entries += [Entry(product, cases[0]) for product in products()]  # once a round is enough
        found: Measured = measure(
            self.pool,
            entries,
            self.settings.rounds,
            self.settings.min_seconds,
            self.options,
            tell=say,
        )
        flops = {case: count_flops(case) for case in cases}
        return [
            make_row(entry, found, flops[entry.case])
            for entry in entries
            if entry.contestant.is_ours
        ]


def _plan(args: argparse.Namespace, settings: Settings) -> tuple[list[Case], dict[str, list[Case]]]:
    """The cases to compare, and those of the sweeps by kind, in rising order."""
    common = settings.common()
    for window in [*args.window, *args.sweep_window, args.sweep_at_window]:
        if window < 1:
            raise ValueError(f'the window {window} is out of range: expected at least 1')
    asks_for_sweep = args.sweep_resolution or args.sweep_window
    inputs = [parse_size(text) for text in args.input or ([] if asks_for_sweep else ['512x512'])]
    cases = grid(inputs, args.window, args.mode, **common)
    sweeps = {}
    if args.sweep_resolution:
        sides = [(side, side) for side in sorted(set(args.sweep_resolution))]
        sweeps['resolution'] = grid(sides, [args.sweep_at_window], ['eval'], **common)
    if args.sweep_window:
        at = parse_size(args.sweep_at_input)
        sweeps['window'] = grid([at], sorted(set(args.sweep_window)), ['eval'], **common)
    return cases, sweeps
