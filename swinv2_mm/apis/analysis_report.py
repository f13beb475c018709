"""The report of `analyze`: tables, pictures and a page."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from swinv2_mm.apis.analysis import Analysis, per_class
from swinv2_mm.apis.pictures import write

_DRAWN = 30
"""Number of classes up to which the matrix has numbers in it and the curves have names."""


def write_report(analysis: Analysis, folder: Path, about: str) -> Path:
    """Write `report.html` and what it shows into a folder, and return its path.

    Args:
        analysis: The analysis.
        folder: The folder; created if necessary. Pictures of an earlier report in `worst` are removed.
        about: A line about model and data.
    """
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
