"""Run the parts of the report in sequence, each within its share of the time, and write their tables."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.gpu.part import PARTS
from benchmarks.processes import ContestantError, Worker, environment
from benchmarks.results import Results, read_results, say, shape_of

BEGIN, END = '<!-- gpu tables -->', '<!-- end of gpu tables -->'
_EARLY = ('backbones',)  # parts that compile while the previous parts run
_MOST_MINUTES = 1440


def run_report(args: argparse.Namespace) -> int:
    """Run the selected parts; return 0 if everything was measured and no test failed, otherwise 1.

    Args:
        args: `parts`, `minutes`, `out`, `device`, `quick`.

    Raises:
        ValueError: An option is out of range, or the device cannot be used.
        OSError: The folder cannot be written.
    """
    args.out = args.out.resolve()  # parts work in other folders
    _check(args)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'log.txt').write_text('')
    except OSError as error:
        raise OSError(f'cannot write into {args.out}: {error.strerror}') from error
    parts = [part for part in PARTS if part in args.parts]
    workers: dict[str, Worker] = {}
    try:
        for part in parts:  # start all at once, since imports take seconds
            (args.out / f'{part}.json').unlink(missing_ok=True)
            workers[part] = Worker(_environment(args.device), args.out / 'log.txt')
        _run_parts(workers, args)
    finally:
        for worker in workers.values():
            worker.close()
        print(write_tables(args.out))
    return 0 if all(is_complete(args.out / f'{part}.json') for part in parts) else 1


def _check(args: argparse.Namespace) -> None:
    device = f'--device {args.device}'
    test_it = 'use `--device cpu --quick` to test the report itself'
    try:
        parsed = torch.device(args.device)
    except RuntimeError as error:
        expected = 'expected cuda, the number of a GPU as in cuda:1, or cpu'
        raise ValueError(f'{device}: {expected}') from error
    if parsed.type not in ('cuda', 'cpu'):
        raise ValueError(f'{device}: the report is about NVIDIA GPUs; {test_it}')
    if parsed.type == 'cuda' and (parsed.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count() or 'no'
        raise ValueError(f'{device}: torch sees {count} GPU{"s"[: count != 1]}; {test_it}')
    if not 0 < args.minutes <= _MOST_MINUTES:
        expected = f'expected more than 0, and at most {_MOST_MINUTES}'
        raise ValueError(f'--minutes {args.minutes:g}: {expected}')
    if parsed.type == 'cpu' and not args.quick:
        raise ValueError(f'{device} only tests the report itself: add --quick')


def _run_parts(workers: Mapping[str, Worker], args: argparse.Namespace) -> None:
    """Run parts in sequence."""
    end = time.monotonic() + 60 * args.minutes
    parts = list(workers)
    early = [part for part in parts[1:] if part in _EARLY]
    for part in early:
        before = parts[: parts.index(part) + 1]
        share = sum(PARTS[name] for name in before) / sum(PARTS[name] for name in parts)
        _start(part, workers[part], args, 60 * args.minutes * share, is_early=True)
    for number, part in enumerate(parts):
        shares = [PARTS[name] for name in parts[number:]]
        seconds = max(1.0, (end - time.monotonic()) * shares[0] / sum(shares))
        say(f'{part}: at most {seconds:.0f} s')
        begin = time.monotonic()
        if part in early:
            workers[part].tell('turn', seconds=seconds)
        else:
            _start(part, workers[part], args, seconds)
        how = 'finished'
        try:
            workers[part].answer(seconds)
        except ContestantError as error:
            how = str(error)
        workers[part].close()  # it may be writing its last results
        if how != 'finished':
            note(args.out / f'{part}.json', part, how)
        say(f'{part}: {how} after {time.monotonic() - begin:.0f} s')
        write_tables(args.out)


def _start(
    part: str, worker: Worker, args: argparse.Namespace, seconds: float, is_early: bool = False
) -> None:
    worker.tell(
        'run_part',
        name=part,
        device=args.device.partition(':')[0],
        quick=args.quick,
        seconds=seconds,
        out=str(args.out / f'{part}.json'),
        command=_command(),
        is_early=is_early,
    )


def _command() -> str:
    """Return the command of this report without `--out`, which does not affect the results."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--out')
    return shlex.join(['python', 'tools/gpu_report.py', *parser.parse_known_args()[1]])


def _environment(device: str) -> dict[str, str]:
    """Return the environment of a part."""
    kind, _, index = device.partition(':')
    env = environment(torch.get_num_threads(), kind)
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # waiting threads sleep
    env.pop('TRITON_INTERPRET', None)
    if kind == 'cpu':
        env['TRITON_INTERPRET'] = '1'  # run the kernels in Python
    elif index:
        visible = env.get('CUDA_VISIBLE_DEVICES', '').split(',')
        env['CUDA_VISIBLE_DEVICES'] = visible[int(index)] if visible[0] else index
    return env


def note(path: Path, part: str, how: str) -> None:
    """Add to the json of a part how it was cut off."""
    results = Results(None, None)
    with contextlib.suppress(ValueError, FileNotFoundError):
        results.content = read_results(path)
    results.path = path
    results.content['finished'] = False  # also if its last results were written meanwhile
    try:
        results.fail(part, how)
    except OSError as error:
        say(f'cannot write {path}: {error.strerror}')


def is_complete(path: Path) -> bool:
    """Return whether a part is complete, without failed measurements or tests."""
    try:
        content = read_results(path)
    except (ValueError, FileNotFoundError):
        return False
    failed = any(row.get('outcome') == 'failed' for row in content['rows'])
    return bool(content.get('finished')) and not content['failed'] and not failed


def write_tables(folder: Path) -> str:
    """Write `report.md` and return its text, which lists unreadable files."""
    text, problems = render(folder)
    if problems:
        text += '\n' + '\n'.join(f'- {tables.one_line(problem)}' for problem in problems) + '\n'
    try:
        (folder / 'report.md').write_text(text, encoding='utf-8')
    except OSError as error:
        say(f'cannot write {folder / "report.md"}: {error.strerror}')
    return text


def show_tables(folder: Path, page: Path | None) -> int:
    """Print the tables of a report, replace those of a page between the lines `BEGIN` and `END`, and return 0.

    Raises:
        ValueError: A file is not a result of the report, the page lacks one of the lines, or the figures were measured
            with tiny sizes.
        OSError: The folder does not contain results, or a file cannot be read or written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f'the folder {folder} does not exist')
    paths = [path for part in PARTS if (path := folder / f'{part}.json').is_file()]
    if not paths:
        raise FileNotFoundError(f'{folder} holds no results of tools/gpu_report.py')
    text, problems = render(folder)
    if problems:
        raise ValueError(problems[0])
    if page is not None:
        for path in paths:
            header = read_results(path)['header']
            if header and header['settings']['quick']:
                raise ValueError(f'{path} was measured with --quick: its figures mean nothing')
        before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            expected = f'expected the lines {BEGIN} and {END}'
            raise ValueError(f'{page} has no place for the tables: {expected}')
        page.write_text(f'{before}{BEGIN}\n\n{text}\n{END}{after}', encoding='utf-8')
    print(text)
    return 0


def render(folder: Path) -> tuple[str, list[str]]:
    """Return tables of all parts below headings of level 3, and the errors of unreadable files."""
    texts, missing, problems = [], [], []
    settings: dict[str, list[str]] = {}
    for part, (title, as_table) in _SECTIONS.items():
        path, section = folder / f'{part}.json', ''
        try:
            results = read_results(path)
            with shape_of(path):
                section = as_table(results['rows']) if results['rows'] else ''
                missing += tables.failures(results, part)
                if results['header']:
                    settings.setdefault(tables.setting(results['header']), []).append(part)
                    results['header']['settings']['quick']
        except FileNotFoundError:
            pass
        except (ValueError, OSError) as error:
            problems.append(f'{part}: {error}')
        texts += [f'### {title}', section or 'Not measured yet.']
    if missing:
        texts += ['### What is missing', '\n'.join(missing)]
    if settings:
        texts.append('Times are medians, with the first and third quartile in brackets.')
    for text, parts in settings.items():
        texts.append(text if len(settings) == 1 else f'{", ".join(parts)}: {text}')
    return '\n\n'.join(texts) + '\n', problems


def _backbones(rows: Sequence[Mapping[str, Any]]) -> str:
    measured = [row for row in rows if 'profile' not in row]
    fields = ['arch', 'input', 'window', 'batch', 'mode', 'dtype']
    extras = ('memory, ours / fastest peer', 'images/s')
    compared = tables.comparison(measured, fields, *extras) if measured else ''
    return '\n\n'.join(filter(None, [compared, tables.profiles(rows)]))


def _kernels(rows: Sequence[Mapping[str, Any]]) -> str:
    fields = ['op', 'dtype', 'window', 'map', 'batch', 'heads', 'head_dim']
    extras = ('floor, ms', 'bound by', 'share of floor', 'flex / ours')
    return tables.comparison(rows, fields, *extras)


def _detectors(rows: Sequence[Mapping[str, Any]]) -> str:
    fields = ['task', 'mode', 'input', 'batch', 'window', 'dtype']
    return '\n\n'.join(filter(None, [tables.comparison(rows, fields), tables.parts(rows)]))


def _training(rows: Sequence[Mapping[str, Any]]) -> str:
    def metrics(row: Mapping[str, Any]) -> str:
        known = {name: value for name, value in row['metrics'].items() if value is not None}
        return ', '.join(f'{name} {value:.4g}' for name, value in known.items()) or '-'

    fields = ('config', 'dtype', 'batch', 'iterations', 'seconds')
    columns = [tables.plain(field) for field in fields]
    columns += [
        ('images/s', lambda row: tables.number(row['images_per_s'], 1)),
        ('peak MB', lambda row: tables.number(row['peak_mb'], 0)),
        ('metrics', metrics),
    ]
    return tables.table(rows, columns)


_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    'tests': ('Tests on the GPU', tables.outcomes),
    'kernels': ('Attention kernels', _kernels),
    'backbones': ('Backbones', _backbones),
    'detectors': ('Detectors and segmenters', _detectors),
    'training': ('A short training', _training),
}
