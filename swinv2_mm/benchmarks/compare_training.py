"""The benchmark of a training step: what `tools/analysis_tools/benchmark_training.py` runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from swinv2_mm.benchmarks.cases import grid, parse_size
from swinv2_mm.benchmarks.contestants import TRAINING_PEERS, trainer
from swinv2_mm.benchmarks.options import Settings, sort_out
from swinv2_mm.benchmarks.report import Outputs, Report, say
from swinv2_mm.benchmarks.results import make_header, make_row
from swinv2_mm.benchmarks.rounds import Entry, measure
from swinv2_mm.benchmarks.weights import write_weights
from swinv2_mm.ops.window_attention import check_backend


def compare_training(args: argparse.Namespace, outputs: Outputs) -> None:
    """Measures what the command line asks for.

    Raises:
        ValueError: An option is out of range.
    """
    settings = Settings.of(args)
    sizes = [parse_size(text) for text in args.input]
    cases = grid(sizes, args.window, args.task, **settings.common())
    names, absent = sort_out(args.peers, TRAINING_PEERS)
    for name, why in absent.items():
        say(f'{name} is absent: {why}')
    backends = [f'ours:{check_backend(name)}' for name in dict.fromkeys(args.backends)]
    contestants = [trainer(name) for name in [*backends, *names]]
    report = Report(
        make_header(absent, asdict(settings), settings.threads, settings.device), outputs
    )
    with settings.pool() as pool:
        weights = pool.folder / 'weights.pth'
        write_weights(settings.arch, weights)
        for case in cases:
            say(f'{case}: {", ".join(contestant.name for contestant in contestants)}')
            entries = [Entry(contestant, case) for contestant in contestants]
            found = measure(
                pool,
                entries,
                settings.rounds,
                settings.min_seconds,
                {'weights': str(weights), 'heads': str(pool.folder / f'{case.mode}.pth')},
                compare=False,
                tell=say,
            )
            rows = [make_row(entry, found) for entry in entries if entry.contestant.is_ours]
            for row in rows:
                row['task'] = case.mode
                row['ours_images_per_s'] = _rate(case.batch, row['ours_ms'])
                row['peers_images_per_s'] = {
                    name: _rate(case.batch, time) for name, time in row['peers_ms'].items()
                }
                row['losses'] = {entry.name: info['loss'] for entry, info in found.infos.items()}
            report.add(rows, pool)
    report.finish()


def _rate(batch: int, milliseconds: float | None) -> float | None:
    return None if milliseconds is None else 1000 * batch / milliseconds
