"""The command `analyze`: what a trained model confuses and misses, by class and by image, and its report."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.apis.analysis import Analysis, analyze_objects, per_class
from swinv2_mm.apis.models import find_model
from swinv2_mm.apis.pictures import write
from swinv2_mm.apis.results import categories_of
from swinv2_mm.apis.side_by_side import read_picture
from swinv2_mm.datasets.checks.configured import leaf_datasets
from swinv2_mm.engine.config import complete_config, merge_options, set_work_dir
from swinv2_mm.engine.console import say
from swinv2_mm.engine.devices import describe_device, use_device
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import dump_predictions, join_json
from swinv2_mm.engine.launch import EXIT_OK, checked_runner, guarded
from swinv2_mm.engine.runner import EvaluationRunner

_NOT_NEEDED = ('curves', 'metrics_file', 'sample_pictures', 'visualization')
"""Hooks of a training and evaluation that this run goes without."""


def analyze(
    model: str,
    *,
    config: str | None = None,
    split: str = 'test',
    results: str | None = None,
    score_thr: float = 0.3,
    out: str = 'analysis',
    worst: int = 12,
    device: str = 'auto',
    trust_checkpoint: bool = False,
    cfg_options: Sequence[str] = (),
) -> int:
    """Run a model on a data set with annotations and write a report.

    The arguments are the options of `tools/analyze.py`; for the exit code, see `swinv2_mm.engine.launch.train`.
    """

    def run() -> int:
        if not 0 <= score_thr <= 1:
            raise SetupError(f'--score-thr {score_thr}: expected a number from 0 to 1.')
        if worst < 0:
            raise SetupError(f'--worst {worst}: expected 0 or more.')
        cfg, checkpoint = find_model(model, config)
        merge_options(cfg, cfg_options)
        if results and cfg.default_scope != 'mmdet':
            raise SetupError('--results takes the results of a detector, and this is none.')
        cfg.test_dataloader = cfg.get(f'{split}_dataloader')
        cfg.test_cfg = cfg.get('test_cfg') or {}
        if not cfg.test_dataloader:
            raise SetupError(
                f'The config has no {split}_dataloader: name another --split or --config.'
            )
        set_work_dir(cfg, out)
        if not results:
            Path(out, 'predictions.json').unlink(missing_ok=True)  # of another model
        found, about = _analyze_model(cfg, checkpoint, device, results, score_thr, worst)
        say(summarize(found))
        say(f'report: {write_report(found, Path(out), f"{checkpoint}, {split} data, {about}")}')
        return EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def _analyze_model(
    cfg: Config, checkpoint: str, device: str, results: str | None, score_thr: float, worst: int
) -> tuple[Analysis, str]:
    """Return the analysis of a model, and what it is based on, in words."""
    cfg.test_evaluator, ann_file = [], ''
    if cfg.default_scope == 'mmdet':
        leaves = list(leaf_datasets(cfg.test_dataloader.dataset, 'test'))
        if len(leaves) != 1 or not str(leaves[0].ann_file).endswith('.json'):
            raise SetupError('The analysis of a detector needs one data set with a COCO json.')
        ann_file, leaf = str(leaves[0].ann_file), leaves[0]
        folder = leaf.folders.get('img') or leaf.root or ''
        file = results or str(Path(cfg.work_dir, 'predictions.json'))
        classes = (leaf.cfg.get('metainfo') or {}).get('classes')
        palette = (leaf.cfg.get('metainfo') or {}).get('palette')
        if not results:
            dump_predictions(cfg, file)
            dataset = _run(cfg, checkpoint, device)
            join_json(file)
            classes, palette = dataset.metainfo['classes'], dataset.metainfo.get('palette')
        meta = {'classes': [classes] if isinstance(classes, str) else classes, 'palette': palette}
        return analyze_objects(ann_file, file, folder, meta, score_thr, worst), (
            f'score from {score_thr}, IoU from 0.5'
        )
    hook = AnalysisHook(worst)
    _run(cfg, checkpoint, device, hook)
    unit = 'pixels' if cfg.default_scope == 'mmseg' else 'images'
    if hook.analysis is None or not hook.analysis.matrix.sum():
        raise SetupError('The data have no ground truth: there is nothing to compare with.')
    return hook.analysis, f'{hook.analysis.matrix.sum()} {unit}'


def _run(cfg: Config, checkpoint: str, device: str, hook: Hook | None = None) -> Any:
    """Test the model with the evaluators of the config, and return the data set."""
    complete_config(cfg)
    for name in _NOT_NEEDED:
        cfg.default_hooks.pop(name, None)
    cfg.launcher, cfg.load_from, cfg.resume = 'none', checkpoint, False
    used = use_device(device, 'none')
    say(f'checkpoint: {checkpoint}; device: {describe_device(used)}')
    runner = checked_runner(cfg, used, EvaluationRunner, ('test',))
    say(f'data: {len(runner.test_dataloader.dataset)} images')
    if hook is not None:
        runner.register_hook(hook)
    runner.test()
    return runner.test_dataloader.dataset


class AnalysisHook(Hook):
    """Collect the analysis of a segmentor or classifier, and its `worst` images."""

    def __init__(self, worst: int) -> None:
        self.worst = worst
        self.analysis: Analysis | None = None

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Count one batch."""
        dataset = runner.test_dataloader.dataset
        if self.analysis is None:
            self.analysis = Analysis(categories_of(dataset.metainfo), self.worst)
        for index, sample in enumerate(outputs or ()):
            inputs = data_batch['inputs'][index]
            self.analysis.add_sample(
                sample, partial(read_picture, sample, dataset, runner.model, inputs)
            )


_DRAWN = 30
"""Number of classes up to which the matrix has numbers in it and the curves have names."""


def write_report(analysis: Analysis, folder: Path, about: str) -> Path:
    """Write `report.html` with a line `about` model and data and what it shows into a folder, and return its path."""
    (folder / 'worst').mkdir(parents=True, exist_ok=True)
    for old in (folder / 'worst').glob('[0-9][0-9]*_*.jpg'):
        old.unlink()
    names = analysis.names
    table = _class_table(analysis)
    _write_csv(folder / 'classes.csv', table)
    matrix: list[list[Any]] = [['true \\ predicted', *names]]
    matrix += [[name, *map(int, row)] for name, row in zip(names, analysis.matrix)]
    _write_csv(folder / 'confusion_matrix.csv', matrix)
    images = sorted(analysis.images, key=lambda item: item[1])
    _write_csv(folder / 'images.csv', [['image', analysis.score_name], *images])
    _draw_matrix(analysis.matrix, names).savefig(folder / 'confusion_matrix.png')
    shown = ['confusion_matrix.png']
    if analysis.curves:
        _draw_curves(analysis.curves).savefig(folder / 'precision_recall.png')
        shown.append('precision_recall.png')
    else:
        (folder / 'precision_recall.png').unlink(missing_ok=True)  # of another model
    worst = []
    for number, (name, score, picture) in enumerate(analysis.worst_pictures(), 1):
        file = f'worst/{number:02d}_{Path(name).stem}.jpg'
        write(folder / file, picture)
        worst.append((file, f'{name}: {analysis.score_name} {score:.3f}'))
    parts = [
        '<!doctype html><meta charset="utf-8"><title>Analysis</title>',
        '<style>body{font:15px sans-serif;margin:2em;max-width:1300px}img{max-width:100%}'
        'table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:3px 9px;text-align:right}'
        'td:first-child{text-align:left}</style>',
        f'<h1>Analysis</h1><p>{escape(about)}; {len(images)} images</p><h2>Classes</h2>',
        _html_table(table),
        '<h2>Pictures</h2>',
        *(f'<p><img src="{file}" alt="{file}"></p>' for file in shown),
        f'<h2>Worst images</h2><p>Lowest {escape(analysis.score_name)} first; all in images.csv.</p>',
        *(f'<p>{escape(text)}<br><img src="{quote(file)}" alt=""></p>' for file, text in worst),
    ]
    page = folder / 'report.html'
    page.write_text('\n'.join(parts), encoding='utf-8')
    return page


def summarize(analysis: Analysis) -> str:
    """Return the means over the classes in a line."""
    header, *_, means = _class_table(analysis)
    known = [(name, mean) for name, mean in zip(header[2:], means[2:]) if not math.isnan(mean)]
    return f'means over the classes: {", ".join(f"{name} {mean:.3f}" for name, mean in known)}'


def _class_table(analysis: Analysis) -> list[list[Any]]:
    """Return the numbers per class, with a row of their means over the classes that have a value."""
    names = analysis.categories.names
    numbers = per_class(analysis.matrix)
    if analysis.score_name != 'mean IoU of its classes':
        del numbers['IoU']
    columns: dict[str, Sequence[Any]] = {'count': analysis.matrix.sum(1)[: len(names)].tolist()}
    columns |= {key: values[: len(names)].tolist() for key, values in numbers.items()}
    columns |= analysis.columns
    rows = [
        [name, *(values[index] for values in columns.values())] for index, name in enumerate(names)
    ]
    mean = ['mean', '', *(_mean(values) for key, values in columns.items() if key != 'count')]
    return [['class', *columns], *rows, mean]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(value: Any) -> str:
    """Return a cell: three digits, empty for NaN."""
    if isinstance(value, float):
        return '' if math.isnan(value) else f'{value:.3f}'
    return str(value)


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([[_plain(value) for value in row] for row in rows])


def _html_table(rows: list[list[Any]]) -> str:
    head, *body = [[escape(_plain(value)) for value in row] for row in rows]
    lines = [f'<tr>{"".join(f"<th>{cell}</th>" for cell in head)}</tr>']
    lines += [f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in body]
    return f'<table>{"".join(lines)}</table>'


def _draw_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    """Draw the matrix in per cent of the true class."""
    totals = np.maximum(matrix.sum(1, keepdims=True), 1)
    shares = matrix / totals * 100
    side = min(16.0, 4 + 0.45 * len(names))
    figure = Figure(figsize=(side + 1, side), dpi=100, layout='constrained')
    axes = figure.add_subplot()
    figure.colorbar(
        axes.imshow(shares, cmap='Blues', vmin=0, vmax=100), label='% of the true class'
    )
    size = 9 if len(names) <= _DRAWN else max(2, 270 // len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    for (row, column), share in np.ndenumerate(shares) if len(names) <= _DRAWN else ():
        if matrix[row, column]:
            colour = 'white' if share > 60 else 'black'
            axes.text(column, row, f'{share:.0f}', ha='center', va='center', color=colour, size=8)
    return figure


def _draw_curves(curves: dict[str, np.ndarray]) -> Figure:
    """Draw precision over recall of boxes, at an IoU of 0.5."""
    figure = Figure(figsize=(8, 5), dpi=100, layout='constrained')
    axes = figure.add_subplot()
    recall = np.linspace(0, 1, 101)
    for name, precision in curves.items():
        label = f'{name} {precision.mean():.2f}' if len(curves) <= _DRAWN else None
        axes.plot(recall, precision, lw=1, alpha=0.8, label=label)
    if len(curves) > 1:
        mean = np.mean(list(curves.values()), 0)
        axes.plot(recall, mean, 'k', lw=2.5, label=f'mean {mean.mean():.2f}')
    axes.set(xlabel='recall', ylabel='precision (boxes, IoU 0.5)', xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    return figure
