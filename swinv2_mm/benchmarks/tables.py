"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


def as_markdown(results: Mapping[str, Any]) -> str:
    """Tables of all rows, and below them what failed, what was absent, and on what it ran."""
    rows = results['rows']
    plain = [row for row in rows if not row.get('sweep')]
    parts = []
    if plain:
        parts.append(table(plain, _columns(plain)))
    for kind in ('resolution', 'window'):
        swept = [row for row in rows if row.get('sweep') == kind]
        if swept:
            parts.append(f'Growth with {kind}:\n\n' + table(swept, _sweep_columns(swept)))
    failures = {
        f'- {name}, {row["input"]} window {row["window"]} {row["mode"]}: {why}': None
        for row in rows
        for name, why in row['failed'].items()
    }
    if failures:
        parts.append('Could not run:\n\n' + '\n'.join(failures))
    absent = results['header']['absent']
    if absent:
        parts.append('Absent:\n\n' + '\n'.join(f'- {k}: {why}' for k, why in absent.items()))
    parts.append(_setting(results['header'], rows))
    return '\n\n'.join(parts) + '\n'


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Columns of a comparison."""
    peers = _peers(rows)
    columns = _case_columns(rows)
    columns.append(
        ('ours, ms', lambda row: time_with_spread(row['ours_ms'], row['ours_quartiles_ms']))
    )
    columns += [(f'{name}, ms', _peer_time(name)) for name in peers]
    columns.append(('fastest peer / ours', _ratio))
    columns.append(('ours, peak MB', lambda row: number(row['ours_peak_mb'], 0)))
    columns += [(f'{name}, peak MB', _peer_peak(name)) for name in peers]
    if any(row.get('ours_images_per_s') for row in rows):
        columns.append(('ours, images/s', lambda row: number(row.get('ours_images_per_s'), 2)))
    if any(row['roofline'] for row in rows):
        columns.append(('roofline', lambda row: percent(row['roofline'])))
        columns.append(('of torch.mm', lambda row: percent(row.get('share_of_mm'))))
    return columns


def _sweep_columns(rows: Sequence[Row]) -> list[Column]:
    """Columns of a sweep."""
    columns = _case_columns(rows)
    columns.append(
        ('ours, ms', lambda row: time_with_spread(row['ours_ms'], row['ours_quartiles_ms']))
    )
    columns.append(('x time', lambda row: number(row['time_factor'], 2)))
    columns.append(('ours, peak MB', lambda row: number(row['ours_peak_mb'], 0)))
    columns.append(('x memory', lambda row: number(row['memory_factor'], 2)))
    for name in _peers(rows):
        columns.append((f'{name}, ms', _peer_time(name)))
        columns.append((f'{name}, peak MB', _peer_peak(name)))
    if any(row['roofline'] for row in rows):
        columns.append(('roofline', lambda row: percent(row['roofline'])))
        columns.append(('of torch.mm', lambda row: percent(row.get('share_of_mm'))))
    return columns


def _case_columns(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ('input', lambda row: row['input']),
        ('window', lambda row: str(row['window'])),
        ('mode', lambda row: row['mode']),
    ]
    if len({row['backend'] for row in rows}) > 1:
        columns.append(('backend', lambda row: row['backend']))
    return columns


def _peers(rows: Sequence[Row]) -> list[str]:
    return list(
        dict.fromkeys(
            name for row in rows for name in (*row['peers_ms'], *row['failed']) if name != 'ours'
        )
    )


def _peer_time(name: str) -> Callable[[Row], str]:
    return lambda row: time_with_spread(
        row['peers_ms'].get(name), row['peers_quartiles_ms'].get(name)
    )


def _peer_peak(name: str) -> Callable[[Row], str]:
    return lambda row: number(row['peers_peak_mb'].get(name), 0)


def _ratio(row: Row) -> str:
    if row['ratio_to_fastest'] is None:
        return '-'
    return f'{row["ratio_to_fastest"]:.2f} ({row["fastest_peer"]})'


def time_with_spread(value: float | None, spread: Sequence[float] | None) -> str:
    """A time with its quartiles, with as many digits as it deserves; `-` where there is none."""
    if value is None or spread is None:
        return '-'
    digits = 0 if value >= 1000 else 1 if value >= 10 else 2
    return f'{value:.{digits}f} ({spread[0]:.{digits}f} to {spread[1]:.{digits}f})'


def number(value: float | None, digits: int) -> str:
    """A number with `digits` after the point; `-` where there is none."""
    return '-' if value is None else f'{value:.{digits}f}'


def percent(value: float | None) -> str:
    """A share in percent; `-` where there is none."""
    return '-' if value is None else f'{100 * value:.0f} %'


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table.

    Args:
        rows: Its rows.
        columns: Title of each column, and what makes a cell of a row.
    """
    lines = ['| ' + ' | '.join(title for title, _ in columns) + ' |']
    lines.append('| ' + ' | '.join('---' for _ in columns) + ' |')
    lines += ['| ' + ' | '.join(cell(row) for _, cell in columns) + ' |' for row in rows]
    return '\n'.join(lines)


def _setting(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    machine, versions = header['machine'], header['versions']
    where = f'{machine["cpu"]} ({machine["cpu_capability"]}), {machine["threads"]} of {machine["cores"]} cores'
    if machine['gpu']:
        where = f'{machine["gpu"]}; {where}'
    first = rows[0] if rows else {}
    what = [f'{key} {first[key]}' for key in ('arch', 'batch', 'dtype', 'rounds') if key in first]
    names = ', '.join(f'{name} {text}' for name, text in versions.items())
    return (
        f'Medians (first to third quartile); {", ".join(what)}. {where}, {machine["ram_gb"]} GB, '
        f'{header["date"]}. {names}.\n\n```\n{header["command"]}\n```'
    )
