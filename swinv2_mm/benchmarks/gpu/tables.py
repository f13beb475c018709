"""The report's figures as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swinv2_mm.benchmarks.gpu.part import PARTS
from swinv2_mm.benchmarks.report import EXIT_OK, EXIT_SETUP, say
from swinv2_mm.benchmarks.results import read_results
from swinv2_mm.benchmarks.tables import Column, Row, number, percent, table, time_with_spread

BEGIN, END = '<!-- gpu tables -->', '<!-- end of gpu tables -->'
_TITLES = {
    'tests': 'Tests on the GPU',
    'kernels': 'Attention kernels',
    'backbones': 'Backbones',
    'detectors': 'Detectors and segmenters',
    'training': 'A short training',
}
_LONGEST = 200  # characters of a message
_LONGEST_KERNEL = 60


def render(folder: Path) -> str:
    """Tables of all parts below headings of the third level.

    Args:
        folder: The folder that `tools/gpu_report.py` wrote.
    """
    files = {part: folder / f'{part}.json' for part in PARTS}
    found, unread = dict[str, dict[str, Any]](), []
    for part, path in files.items():
        try:
            found[part] = read_results(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            unread.append(f'- {part}: {_one_line(str(error))}')
    texts = []
    for part in PARTS:
        texts.append(f'### {_TITLES[part]}')
        rows = found[part]['rows'] if part in found else []
        texts.append(_RENDERERS[part](rows) if rows else 'Not measured yet.')
    lines = [
        f'- {_where(part, failure["what"])}: {_one_line(failure["why"])}'
        for part, results in found.items()
        for failure in results.get('failed', [])
    ]
    lines += unread
    if lines:
        texts += ['### What is missing', '\n'.join(lines)]
    headers = {part: results['header'] for part, results in found.items() if results['header']}
    if headers:
        texts.append(_settings(headers))
    return '\n\n'.join(texts) + '\n'


def update_docs(folder: Path, page: Path) -> None:
    """Replace the tables of a page by those of a report.

    Args:
        folder: The folder that `tools/gpu_report.py` wrote.
        page: A Markdown file with the lines `BEGIN` and `END`.

    Raises:
        ValueError: The page lacks one of the lines, or the figures are from tiny sizes and mean nothing.
    """
    for part in PARTS:
        path = folder / f'{part}.json'
        header = read_results(path)['header'] if path.is_file() else None
        if header and header['settings']['quick']:
            raise ValueError(f'{path} was measured with --quick: its figures mean nothing')
    text = page.read_text(encoding='utf-8')
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f'{page} has no place for the tables: expected the lines {BEGIN} and {END}'
        )
    page.write_text(f'{before}{BEGIN}\n\n{render(folder)}\n{END}{after}', encoding='utf-8')


def show_tables(folder: Path, page: Path | None) -> int:
    """Print the tables of a report; returns the exit code of the tool.

    Args:
        folder: The folder that `tools/gpu_report.py` wrote.
        page: A page to write them into, too.
    """
    try:
        if not folder.is_dir():
            raise FileNotFoundError(f'the folder {folder} does not exist')
        if not any((folder / f'{part}.json').is_file() for part in PARTS):
            raise FileNotFoundError(f'{folder} holds no results of tools/gpu_report.py')
        if page is not None:
            update_docs(folder, page)
        print(render(folder))
    except (ValueError, OSError) as error:
        say(str(error))
        return EXIT_SETUP
    return EXIT_OK


def _render_tests(rows: Sequence[Row]) -> str:
    counts = {
        outcome: sum(row['outcome'] == outcome for row in rows)
        for outcome in ('passed', 'failed', 'skipped')
    }
    summary = {**counts, 'seconds': f'{sum(row["seconds"] for row in rows):.0f}'}
    columns: list[Column] = [(name, _text(name)) for name in summary]
    reasons = Counter(row.get('message', '') for row in rows if row['outcome'] == 'skipped')
    lines = [
        f'- `{row["test"]}` failed: {_one_line(row.get("message", ""))}'
        for row in rows
        if row['outcome'] == 'failed'
    ]
    lines += [f'- {count} skipped: {_one_line(reason)}' for reason, count in reasons.items()]
    return '\n\n'.join([table([summary], columns), *(['\n'.join(lines)] if lines else [])])


def _render_kernels(rows: Sequence[Row]) -> str:
    columns = _columns('op', 'dtype', 'window', 'map', 'batch', 'heads', 'head_dim')
    columns += _times(rows)
    columns += [
        ('floor, ms', lambda row: number(row.get('floor_ms'), 3)),
        ('bound by', _text('bound')),
        ('share of floor', lambda row: percent(row.get('share_of_floor'))),
        ('flex / ours', lambda row: number(row.get('ratio_to_flex'), 2)),
    ]
    return table(rows, columns)


def _render_backbones(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if 'profile' not in row]
    columns = _columns('arch', 'input', 'window', 'batch', 'mode', 'dtype')
    columns += [*_times(measured), ('fastest peer / ours', _ratio), *_peaks(measured)]
    columns += [
        ('memory, ours / fastest peer', lambda row: number(row.get('memory_ratio'), 2)),
        ('images/s', _images),
    ]
    texts = [table(measured, columns)] if measured else []
    for row in rows:
        if 'profile' in row:
            kernels = [dict(zip(('kernel', 'ms', 'share'), entry)) for entry in row['kernels']]
            of_kernel: list[Column] = [
                ('kernel', lambda row: f'`{_cell(row["kernel"])[:_LONGEST_KERNEL]}`'),
                ('ms', lambda row: number(row['ms'], 3)),
                ('share', lambda row: percent(row['share'])),
            ]
            texts.append(f'Kernels of {row["profile"]}, {row["case"]}:')
            texts.append(table(kernels, of_kernel))
    return '\n\n'.join(texts)


def _render_detectors(rows: Sequence[Row]) -> str:
    columns = _columns('task', 'mode', 'input', 'batch', 'window', 'dtype')
    columns += [*_times(rows), ('fastest peer / ours', _ratio), *_peaks(rows)]
    texts = [table(rows, columns)]
    with_parts = [row for row in rows if row.get('parts_ms')]
    if with_parts:
        names = _names(with_parts, 'parts_ms')
        parts = _columns('task', 'input', 'batch')
        parts += [(f'{name}, ms', _entry('parts_ms', name)) for name in names]
        texts += ['Parts of our inference:', table(with_parts, parts)]
    return '\n\n'.join(texts)


def _render_training(rows: Sequence[Row]) -> str:
    columns = _columns('config', 'data', 'dtype', 'batch', 'iterations', 'seconds')
    columns += [
        ('images/s', lambda row: number(row.get('images_per_s'), 1)),
        ('peak MB', lambda row: number(row.get('peak_mb'), 0)),
        ('metrics', _metrics),
    ]
    return table(rows, columns)


_RENDERERS: dict[str, Callable[[Sequence[Row]], str]] = {
    'tests': _render_tests,
    'kernels': _render_kernels,
    'backbones': _render_backbones,
    'detectors': _render_detectors,
    'training': _render_training,
}


def _metrics(row: Row) -> str:
    known = {name: value for name, value in row['metrics'].items() if value is not None}
    return ', '.join(f'{name} {value:.4g}' for name, value in known.items()) or '-'


def _columns(*fields: str) -> list[Column]:
    return [(field.replace('_', ' '), _text(field)) for field in fields]


def _text(field: str) -> Callable[[Row], str]:
    return lambda row: _cell(row.get(field))


def _cell(value: Any) -> str:
    return '-' if value is None else str(value).replace('|', '\\|')


def _names(rows: Sequence[Row], field: str) -> list[str]:
    """Names of contestants or parts in the order in which rows name them."""
    return list(dict.fromkeys(name for row in rows for name in row.get(field) or {}))


def _times(rows: Sequence[Row]) -> list[Column]:
    """A column for each contestant's time."""
    return [(f'{name}, ms', _entry('ms', name, 'quartiles_ms')) for name in _names(rows, 'ms')]


def _peaks(rows: Sequence[Row]) -> list[Column]:
    """A column for each contestant's memory."""
    return [(f'{n}, peak MB', _entry('peak_mb', n, digits=0)) for n in _names(rows, 'peak_mb')]


def _entry(field: str, name: str, spread: str = '', digits: int = 3) -> Callable[[Row], str]:
    """A cell of one contestant; with the quartiles below `spread` where there are some."""

    def cell(row: Row) -> str:
        value = (row.get(field) or {}).get(name)
        quartiles = (row.get(spread) or {}).get(name)
        if quartiles is not None:
            return time_with_spread(value, quartiles)
        return number(value, digits if value is None or value < 1 else min(digits, 2))

    return cell


def _ratio(row: Row) -> str:
    if row.get('ratio_to_fastest') is None:
        return '-'
    names = row['fastest_peer']
    if row.get('ours') not in (None, 'ours'):
        names += f' / {row["ours"]}'
    return f'{row["ratio_to_fastest"]:.2f} ({names})'


def _images(row: Row) -> str:
    value = row.get('images_per_s')
    return number(value.get(row.get('ours')) if isinstance(value, Mapping) else value, 1)


def _one_line(text: str) -> str:
    """The beginning of a message, in one line and without what Markdown would read."""
    line = ' '.join(text.split()).replace('`', "'").replace('<', '&lt;')
    return line if len(line) <= _LONGEST else line[:_LONGEST] + ' ...'


def _where(part: str, what: str) -> str:
    return part if what == part else f'{part}: {what}'


def _settings(headers: Mapping[str, Mapping[str, Any]]) -> str:
    """Card, versions, date and command, once for all parts that share them."""
    parts: dict[str, list[str]] = {}
    for part, header in headers.items():
        parts.setdefault(_setting(header), []).append(part)
    texts = [
        'Times are medians; the first and third quartile are in brackets where they were taken.'
    ]
    for setting, names in parts.items():
        texts.append(setting if len(parts) == 1 else f'{", ".join(names)}: {setting}')
    return '\n\n'.join(texts)


def _setting(header: Mapping[str, Any]) -> str:
    machine = header['machine']
    where = f'{machine["cpu"]} ({machine["cpu_capability"]}), {machine["cores"]} cores'
    where = f'{machine["gpu"]}; {where}' if machine['gpu'] else f'{where}, no GPU'
    names = ', '.join(f'{name} {text}' for name, text in header['versions'].items())
    day = header['date'].partition(' ')[0]
    return f'{where}; {day}. {names}.\n\n```\n{header["command"]}\n```'
