"""Markdown tables of the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Any], str]]

_LONGEST = 200  # characters of a message
_LONGEST_KERNEL = 60


def as_markdown(results: Mapping[str, Any]) -> str:
    """Return tables of all rows of a benchmark, followed by failures, absent peers and the machine."""
    rows, header = results['rows'], results['header']
    has_models = any(row['task'] != 'backbone' for row in rows)
    fields = ['input', 'window', *(['task'] if has_models else []), 'mode']
    extras = ['images/s'] if has_models else ['roofline', 'of torch.mm']
    plain = [row for row in rows if not row.get('sweep')]
    texts = [comparison(plain, fields, *extras)] if plain else []
    texts += filter(None, [parts(rows)])
    for kind in ('resolution', 'window'):
        swept = [row for row in rows if row.get('sweep') == kind]
        if swept:
            texts.append(f'Growth with {kind}:')
            texts.append(comparison(swept, fields, *extras))
    failed = failures(results)
    if failed:
        texts += ['Could not run:', '\n'.join(failed)]
    absent = header['settings'].get('absent')
    if absent:
        texts += ['Absent:', '\n'.join(f'- {name}: {why}' for name, why in absent.items())]
    common = ', '.join(f'{key} {rows[0][key]}' for key in ('arch', 'batch', 'dtype', 'rounds'))
    texts.append(f'Medians (first to third quartile); {common}. {setting(header)}')
    return '\n\n'.join(texts) + '\n'


def comparison(rows: Sequence[Row], fields: Sequence[str], *extras: str) -> str:
    """Return a table of times and memory; `extras` of `_EXTRAS` are shown if a row has a value."""
    columns = [plain(field) for field in fields] + _each(rows, 'ms')
    titles = ('x time',) if any(row.get('sweep') for row in rows) else ('fastest peer / ours',)
    columns += _filled(rows, titles)
    columns += _each(rows, 'peak_mb')
    columns += _filled(rows, ('x memory', *extras))
    return table(rows, columns)


def parts(rows: Sequence[Row]) -> str:
    """Return a table of the parts of our inference; empty if no row has them."""
    rows = [row for row in rows if row.get('parts_ms')]
    columns = [plain(field) for field in ('task', 'input', 'batch')] + _each(rows, 'parts_ms')
    return f'Parts of our inference:\n\n{table(rows, columns)}' if rows else ''


def profiles(rows: Sequence[Row]) -> str:
    """Return tables of the kernels of a device."""
    columns: list[Column] = [
        ('kernel', lambda row: f'`{cell(row[0])[:_LONGEST_KERNEL]}`'),
        ('ms', lambda row: number(row[1], 3)),
        ('share', lambda row: percent(row[2])),
    ]
    return '\n\n'.join(
        f'Kernels of {row["profile"]}, {row["case"]}:\n\n{table(row["kernels"], columns)}'
        for row in rows
        if 'profile' in row
    )


def outcomes(rows: Sequence[Row]) -> str:
    """Return a table of test outcomes, and the failed and skipped tests with their messages."""
    counts = Counter(row['outcome'] for row in rows)
    summary = {outcome: counts[outcome] for outcome in ('passed', 'failed', 'skipped')}
    summary['seconds'] = round(sum(row['seconds'] for row in rows))
    reasons = Counter(row.get('message', '') for row in rows if row['outcome'] == 'skipped')
    lines = [
        f'- `{row["test"]}` failed: {one_line(row.get("message", ""))}'
        for row in rows
        if row['outcome'] == 'failed'
    ]
    lines += [f'- {count} skipped: {one_line(reason)}' for reason, count in reasons.items()]
    return '\n\n'.join(
        filter(None, [table([summary], [plain(n) for n in summary]), '\n'.join(lines)])
    )


def failures(results: Mapping[str, Any], part: str = '') -> list[str]:
    """Return a line per failed measurement; `part` is added as a prefix if it is missing."""
    lines = []
    for failure in results['failed']:
        prefix = f'{part}: ' if part and failure['what'] != part else ''
        lines.append(f'- {prefix}{failure["what"]}: {one_line(failure["why"])}')
    return list(dict.fromkeys(lines))


def setting(header: Mapping[str, Any]) -> str:
    """Return machine, date, versions and command."""
    machine = header['machine']
    where = f'{machine["cpu"]} ({machine["cpu_capability"]}), {machine["threads"]} of {machine["cores"]} cores'
    where = f'{machine["gpu"]}; {where}' if machine['gpu'] else where
    names = ', '.join(f'{name} {text}' for name, text in header['versions'].items())
    day, command = header['date'].partition(' ')[0], f'```\n{header["command"]}\n```'
    return f'{where}, {machine["ram_gb"]} GB, {day}. {names}.\n\n{command}'


def table(rows: Sequence[Any], columns: Sequence[Column]) -> str:
    """Return a Markdown table; each column has a title and a function from a row to its cell."""
    lines = [[title for title, _ in columns], ['---'] * len(columns)]
    lines += [[make(row) for _, make in columns] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def plain(field: str) -> Column:
    """Return a column with the values of a field."""
    return field.replace('_', ' '), lambda row: cell(row.get(field))


def cell(value: Any) -> str:
    """Return a value as text; `-` for None."""
    return '-' if value is None else str(value).replace('|', '\\|')


def number(value: float | None, digits: int, unit: str = '') -> str:
    """Return a number with `digits` decimals; `-` for None."""
    return '-' if value is None else f'{value:.{digits}f}{unit}'


def percent(value: float | None) -> str:
    """Return a share in percent; `-` for None."""
    return number(value and 100 * value, 0, ' %')


def one_line(text: str) -> str:
    """Return the beginning of a message in one line, without Markdown syntax."""
    line = ' '.join(text.split()).replace('`', "'").replace('<', '&lt;')
    return line if len(line) <= _LONGEST else line[:_LONGEST] + ' ...'


def _each(rows: Sequence[Row], field: str) -> list[Column]:
    """Return a column for each contestant or part in `field` of the rows."""

    def column(name: str) -> Column:
        if field == 'peak_mb':
            return f'{name}, peak MB', lambda row: number(row[field].get(name), 0)
        return f'{name}, ms', lambda row: _time(row, field, name)

    return [column(name) for name in dict.fromkeys(name for row in rows for name in row[field])]


def _time(row: Row, field: str, name: str) -> str:
    """Return a time, with its quartiles if available."""
    value = row[field].get(name)
    if value is None:
        return '-'
    digits = 0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3
    low_high = row.get('quartiles_ms', {}).get(name)
    spread = ' ({:.{d}f} to {:.{d}f})'.format(*low_high, d=digits) if low_high else ''
    return f'{value:.{digits}f}{spread}'


def _filled(rows: Sequence[Row], titles: Sequence[str]) -> list[Column]:
    """Return the columns of `_EXTRAS` that have a value in any row."""
    columns = [(title, _EXTRAS[title]) for title in titles]
    return [(title, make) for title, make in columns if any(make(row) != '-' for row in rows)]


def _ratio(row: Row) -> str:
    """Return the ratio to the fastest peer, with the names of both."""
    if row.get('ratio_to_fastest') is None:
        return '-'
    mine = '' if row['ours'] == 'ours' else f' / {row["ours"]}'
    return f'{row["ratio_to_fastest"]:.2f} ({row["fastest_peer"]}{mine})'


def _of_ours(field: str, digits: int) -> Callable[[Row], str]:
    return lambda row: number((row.get(field) or {}).get(row.get('ours')), digits)


_EXTRAS: dict[str, Callable[[Row], str]] = {
    'fastest peer / ours': _ratio,
    'x time': _of_ours('time_factor', 2),
    'x memory': _of_ours('memory_factor', 2),
    'memory, ours / fastest peer': lambda row: number(row.get('memory_ratio'), 2),
    'images/s': _of_ours('images_per_s', 2),
    'roofline': lambda row: percent(row.get('roofline')),
    'of torch.mm': lambda row: percent(row.get('share_of_mm')),
    'floor, ms': lambda row: number(row.get('floor_ms'), 3),
    'bound by': lambda row: cell(row.get('bound')),
    'share of floor': lambda row: percent(row.get('share_of_floor')),
    'flex / ours': lambda row: number((row.get('ratios') or {}).get('flex'), 2),
}
