"""Code of `tools/benchmark_zoo.py`: trainings of several configs with several seeds, and their results."""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from swinv2_mm.apis.complexity import count_parts
from swinv2_mm.apis.models import build_model
from swinv2_mm.engine.config import dicts_in, load_config
from swinv2_mm.engine.curves import read_scalars
from swinv2_mm.engine.errors import SetupError
from swinv2_mm_cli import find_config

METRICS = ('bbox_mAP', 'segm_mAP', 'mIoU', 'aAcc', 'top1')
"""Metrics that the table and the figure show, if a config has them."""
Runs = dict[str, dict[str, Any]]


def compare(
    configs: Sequence[str],
    seeds: Sequence[int],
    out: str,
    command: str,
    max_iters: int | None = None,
    cfg_options: Sequence[str] = (),
) -> int:
    """Run the trainings that are not finished, and write `results.json`, `results.md` and `curves.png` into `out`.

    The arguments are the options of `tools/benchmark_zoo.py`.

    Returns:
        The exit code: 0, or that of the first training that failed; finished ones are kept.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        paths = {Path(path).stem: path for path in map(find_config, configs)}
    except FileNotFoundError as missing:
        raise SetupError(str(missing)) from missing
    if len(paths) < len(configs):
        raise SetupError('Two of the configs have the same file name: give each another one.')
    for path in paths.values():  # faults are told before the first training
        load_config(path, cfg_options)
    options = list(cfg_options) + ([] if max_iters is None else [f'max_iters={max_iters}'])
    runs = _finished(folder, options)
    for seed in seeds:  # all configs with one seed first: rows can be compared early
        for name, path in paths.items():
            key = f'{name}/seed_{seed}'
            if key not in runs:
                code = _train(path, folder / key, seed, command, max_iters, cfg_options)
                if code:
                    return code
                file = folder / key / 'metrics.json'
                if not file.is_file():
                    raise SetupError(
                        f'The command returned without {file}: it must wait for the end of the training.'
                    )
                runs[key] = json.loads(file.read_text())
                if not runs[key]:
                    raise SetupError(f'{file} has no metrics: the validation found nothing.')
                _write(folder, options, runs)
    rows = [
        _row(name, path, [runs[f'{name}/seed_{seed}'] for seed in seeds])
        for name, path in paths.items()
    ]
    table = _table(rows, len(seeds))
    (folder / 'results.md').write_text(table)
    _draw(folder, list(paths), seeds)
    print(table)
    return 0


def _finished(folder: Path, options: list[str]) -> Runs:
    """Return the metrics of finished trainings by their folder, if they had the same options."""
    file = folder / 'results.json'
    if not file.is_file():
        return {}
    content = json.loads(file.read_text())
    if content['options'] != options:
        raise SetupError(
            f'{file} is of trainings with the options {content["options"]}, not {options}: name another --out.'
        )
    runs: Runs = content['runs']
    return runs


def _write(folder: Path, options: list[str], runs: Runs) -> None:
    content = json.dumps({'options': options, 'runs': runs}, indent=2)
    part = folder / 'results.json.part'
    part.write_text(content)
    part.replace(folder / 'results.json')


def _train(
    path: str,
    work_dir: Path,
    seed: int,
    command: str,
    max_iters: int | None,
    cfg_options: Sequence[str],
) -> int:
    """Run a training, or continue it where it stopped; return the exit code."""
    names = dict(config=path, name=f'{Path(path).stem}-{seed}', work_dir=str(work_dir))
    try:
        call = [part.format(**names) for part in shlex.split(command)]
    except (KeyError, ValueError, IndexError) as error:
        raise SetupError(f'--command {command!r} cannot be read: {error!r}.') from error
    call += ['--work-dir', str(work_dir)]
    call += ['--resume'] if any(work_dir.glob('*.pth')) else []
    call += [] if max_iters is None else ['--max-iters', str(max_iters)]
    call += ['--cfg-options', f'randomness.seed={seed}', *cfg_options]
    print(shlex.join(call), flush=True)
    return subprocess.run(call).returncode


def _row(name: str, path: str, metrics: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the name, parameters, multiply-adds and metrics of a config; the metrics by seed."""
    cfg = load_config(path)
    crops = [step.crop_size for step in dicts_in(cfg.train_pipeline) if 'crop_size' in step]
    height, width = crops[-1] if crops else (512, 512)
    parts = count_parts(build_model(cfg, name), (height, width))
    of_backbone = [part for part in parts if part.name.startswith('backbone')]
    return dict(
        name=name,
        params=sum(part.params for part in of_backbone),
        macs=sum(part.macs for part in of_backbone),
        size=(height, width),
        metrics={key: [run[key] for run in metrics] for key in METRICS if key in metrics[0]},
    )


def _table(rows: Sequence[dict[str, Any]], count: int) -> str:
    """Return the rows as markdown."""
    keys = [key for key in METRICS if any(key in row['metrics'] for row in rows)]
    head = ['config', 'backbone, M parameters', 'backbone, G multiply-adds', *keys]
    lines = [head, ['---'] * len(head)]
    for row in rows:
        cells = [row['name'], f'{row["params"] / 1e6:.2f}', f'{row["macs"] / 1e9:.3f}']
        for key in keys:
            values = row['metrics'].get(key)
            if values is None:
                cells.append('-')
                continue
            spread = f' ± {statistics.stdev(values):.3g}' if count > 1 else ''
            each = ', '.join(f'{value:.4g}' for value in values)
            cells.append(f'{statistics.fmean(values):.4g}{spread} ({each})')
        lines.append(cells)
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return (
        f'{table}\n\nMean ± standard deviation of {count} seeds (each), after the last iteration.\n'
    )


def _draw(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Draw each metric over iterations: the mean of the seeds, and their range."""
    series: dict[str, dict[str, list[dict[float, float]]]] = {}
    for name in names:
        for seed in seeds:
            files = sorted((folder / name / f'seed_{seed}').glob('*/vis_data/scalars.json'))
            for key, values in read_scalars(files)[2].items():
                short = key.rpartition('/')[2]
                if short in METRICS:
                    series.setdefault(short, {}).setdefault(name, []).append(values)
    figure = Figure(figsize=(7, 3.2 * max(1, len(series))), dpi=80)
    all_axes = figure.subplots(max(1, len(series)), squeeze=False)[:, 0]
    for axes, (key, by_name) in zip(all_axes, series.items()):
        for name, curves in by_name.items():
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            found = [[curve[step] for curve in curves] for step in steps]
            (line,) = axes.plot(steps, [statistics.fmean(row) for row in found], '.-', label=name)
            lows, highs = [min(row) for row in found], [max(row) for row in found]
            axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.2, lw=0)
        axes.set_ylabel(key)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    all_axes[-1].set_xlabel('iteration')
    figure.tight_layout()
    figure.savefig(folder / 'curves.png')
