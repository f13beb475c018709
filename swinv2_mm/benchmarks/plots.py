"""Results as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_mm.benchmarks.results import cases_of

_COLORS = ['#1f5fa8', '#d1782c', '#4f9a53', '#8c61a8', '#a04a4a', '#7d7d7d', '#c2a83e', '#3d9aa1']


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draws time and memory of all cases, and curves of sweeps.

    Args:
        results: What `read_results` returns.
        path: The picture; its suffix is the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = results['rows']
    plain = [row for row in rows if not row.get('sweep')]
    sweeps = {
        kind: [row for row in rows if row.get('sweep') == kind] for kind in ('resolution', 'window')
    }
    panels = [('plain', plain)] if plain else []
    panels += [(kind, swept) for kind, swept in sweeps.items() if swept]
    figure = Figure(figsize=(10, 1 + sum(_height(kind, swept) for kind, swept in panels)))
    FigureCanvasAgg(figure)
    if panels:
        axes = figure.subplots(
            len(panels),
            2,
            squeeze=False,
            height_ratios=[_height(kind, swept) for kind, swept in panels],
        )
        for (kind, swept), (left, right) in zip(panels, axes):
            if kind == 'plain':
                _bars(left, swept, 'ms', 'time of a call, ms')
                _bars(right, swept, 'peak_mb', 'peak memory of a call, MB')
                left.legend(fontsize=8)
            else:
                _curves(left, swept, kind, 'ms', 'time of a call, ms')
                _curves(right, swept, kind, 'peak_mb', 'peak memory of a call, MB')
                left.legend(fontsize=8)
    machine = results['header']['machine']
    where = machine['gpu'] or f'{machine["cpu"]} ({machine["cpu_capability"]})'
    figure.suptitle(f'{where}, {machine["threads"]} threads', fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _height(kind: str, rows: Sequence[Mapping[str, Any]]) -> float:
    """Inches that a panel needs."""
    return 4.0 if kind != 'plain' else 0.6 + len(rows) * (0.3 + 0.14 * len(_names(rows)))


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ['ours', *dict.fromkeys(name for row in rows for name in row['peers_ms'])]


def _value(row: Mapping[str, Any], name: str, unit: str) -> float | None:
    return row[f'ours_{unit}'] if name == 'ours' else row[f'peers_{unit}'].get(name)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], unit: str, title: str) -> None:
    """A group of horizontal bars per case; a thin line spans the quartiles of a time."""
    names = _names(rows)
    for place, name in enumerate(names):
        label: str | None = name
        for index, row in enumerate(rows):
            value = _value(row, name, unit)
            if value is None:
                continue
            height = index + (place + 0.5) * 0.8 / len(names) - 0.4
            color = _COLORS[place % len(_COLORS)]
            axes.barh(height, value, 0.8 / len(names), color=color, label=label)
            label = None  # once in the legend
            spread = _value(row, name, 'quartiles_ms') if unit == 'ms' else None
            if spread is not None:
                axes.plot(spread, [height, height], color='black', linewidth=0.8)
    axes.set_yticks(range(len(rows)), cases_of(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(title)


def _curves(axes: Any, rows: Sequence[Mapping[str, Any]], kind: str, unit: str, title: str) -> None:
    """A line per contestant over resolution or window, both axes logarithmic."""
    from matplotlib.ticker import LogLocator

    for place, name in enumerate(_names(rows)):
        points = [(_extent(row, kind), _value(row, name, unit)) for row in rows]
        points = [(x, y) for x, y in points if y is not None]
        if points:
            color = _COLORS[place % len(_COLORS)]
            axes.loglog(*zip(*points), marker='o', color=color, label=name)
    ticks = [_extent(row, kind) for row in rows]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.minorticks_off()
    axes.set_xlabel('side of the image, pixels' if kind == 'resolution' else 'window, tokens')
    axes.set_ylabel(title)


def _extent(row: Mapping[str, Any], kind: str) -> int:
    return int(row['input'].split('x')[0]) if kind == 'resolution' else row['window']
