"""Figures of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COLORS = ['#1f5fa8', '#d1782c', '#4f9a53', '#8c61a8', '#a04a4a', '#7d7d7d', '#c2a83e', '#3d9aa1']
_QUANTITIES = {'ms': 'time of a call, ms', 'peak_mb': 'peak memory of a call, MB'}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw time and memory of all cases, and curves of sweeps.

    Args:
        results: Results from `read_results`.
        path: The image file; its suffix sets the format.
    """
    from matplotlib.figure import Figure

    panels = {
        kind: [row for row in results['rows'] if row.get('sweep') == kind]
        for kind in (None, 'resolution', 'window')
    }
    panels = {kind: rows for kind, rows in panels.items() if rows}
    heights = [
        4.0 if kind else 0.6 + len(rows) * (0.3 + 0.14 * len(_names(rows)))
        for kind, rows in panels.items()
    ]
    figure = Figure(figsize=(10, 1 + sum(heights)))
    axes = figure.subplots(len(panels), 2, squeeze=False, height_ratios=heights)
    for (kind, rows), pair in zip(panels.items(), axes):
        for one, (quantity, title) in zip(pair, _QUANTITIES.items()):
            if kind is None:
                _bars(one, rows, quantity, title)
            else:
                _curves(one, rows, kind, quantity, title)
        pair[0].legend(fontsize=8)
    machine = results['header']['machine']
    where = machine['gpu'] or f'{machine["cpu"]} ({machine["cpu_capability"]})'
    figure.suptitle(f'{where}, {machine["threads"]} threads', fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row['ms']))


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], quantity: str, title: str) -> None:
    """Draw a group of horizontal bars per case; thin lines show the quartiles of times."""
    names = _names(rows)
    for place, name in enumerate(names):
        shown = [(i, row) for i, row in enumerate(rows) if row[quantity].get(name) is not None]
        heights = [i + (place + 0.5) * 0.8 / len(names) - 0.4 for i, _ in shown]
        values = [row[quantity][name] for _, row in shown]
        color = _COLORS[place % len(_COLORS)]
        axes.barh(heights, values, 0.8 / len(names), color=color, label=name)
        if quantity == 'ms':
            for height, (_, row) in zip(heights, shown):
                axes.plot(row['quartiles_ms'][name], [height] * 2, color='black', linewidth=0.8)
    axes.set_yticks(range(len(rows)), _cases(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(title)


def _cases(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a short name of every row, without fields that are equal in all rows."""
    words = {'input': '{}', 'window': 'w{}', 'mode': '{}', 'task': '{}'}
    varied = [key for key in words if key == 'input' or len({row[key] for row in rows}) > 1]
    return [' '.join(words[key].format(row[key]) for key in varied) for row in rows]


def _curves(
    axes: Any, rows: Sequence[Mapping[str, Any]], kind: str, quantity: str, title: str
) -> None:
    """Draw a line per contestant over resolution or window, with logarithmic axes."""
    from matplotlib.ticker import LogLocator

    ticks = [int(r['input'].split('x')[0]) if kind == 'resolution' else r['window'] for r in rows]
    for place, name in enumerate(_names(rows)):
        points = [(x, row[quantity].get(name)) for x, row in zip(ticks, rows)]
        points = [(x, y) for x, y in points if y is not None]
        if points:
            color = _COLORS[place % len(_COLORS)]
            axes.loglog(*zip(*points), marker='o', color=color, label=name)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.minorticks_off()
    axes.set_xlabel('side of the image, pixels' if kind == 'resolution' else 'window, tokens')
    axes.set_ylabel(title)
