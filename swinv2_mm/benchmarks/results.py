"""Rows of the results, and the file they are in."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import swinv2_mm
from swinv2_mm.benchmarks.cases import needs_padding
from swinv2_mm.benchmarks.contestants import PRODUCTS
from swinv2_mm.benchmarks.rounds import Entry, Measured
from swinv2_mm.benchmarks.summary import fastest, median, pairwise_ratio, quartiles, share_of_peak

_DISTRIBUTIONS = ('torchvision', 'numpy', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')


def make_row(entry: Entry, found: Measured, flops: int | None = None) -> dict[str, Any]:
    """One row: ours in one case beside all others in the same rounds.

    Args:
        entry: Ours.
        found: What was measured.
        flops: Matrix-product FLOPs of a call; None leaves the roofline out.
    """
    case = entry.case
    everyone = {*found.samples, *found.failures}
    beside = sorted(
        (
            e
            for e in everyone
            if e.case == case and not e.contestant.is_ours and e.name not in PRODUCTS
        ),
        key=lambda e: e.name,
    )
    ran = [e for e in beside if e in found.samples]
    mine = found.samples.get(entry)
    ratios = {e.name: pairwise_ratio(found.samples[e], mine) for e in ran} if mine else {}
    first = fastest(ratios)
    row: dict[str, Any] = {
        'input': case.size,
        'window': case.window,
        'mode': case.mode,
        'arch': case.arch,
        'batch': case.batch,
        'dtype': case.dtype,
        'device': case.device,
        'backend': entry.name.partition(':')[2],
        'ours_ms': median(mine) if mine else None,
        'ours_quartiles_ms': quartiles(mine) if mine else None,
        'peers_ms': {e.name: median(found.samples[e]) for e in ran},
        'peers_quartiles_ms': {e.name: quartiles(found.samples[e]) for e in ran},
        'ratios': ratios,
        'fastest_peer': first,
        'ratio_to_fastest': ratios[first] if first else None,
        'ours_peak_mb': found.peaks.get(entry),
        'peers_peak_mb': {e.name: found.peaks[e] for e in ran if e in found.peaks},
        'roofline': None,
        'share_of_mm': None,
        'shared_weights': {e.name: found.infos[e].get('shared_weights', False) for e in ran},
        'max_relative_difference': {
            e.name: found.differences[e] for e in ran if e in found.differences
        },
        'padded': needs_padding(case),
        'failed': {
            **({'ours': found.failures[entry]} if entry in found.failures else {}),
            **{e.name: found.failures[e] for e in beside if e in found.failures},
        },
        'rounds': len(mine) if mine else 0,
        'samples_ms': {
            **({'ours': mine} if mine else {}),
            **{e.name: found.samples[e] for e in ran},
        },
    }
    _add_roofline(row, entry, found, flops)
    return row


def _add_roofline(row: dict[str, Any], entry: Entry, found: Measured, flops: int | None) -> None:
    mine = found.samples.get(entry)
    if flops is None or not mine:
        return
    row['gflops'] = flops / 1e9
    for name, field in PRODUCTS.items():
        for product, samples in found.samples.items():
            if product.name == name and product.case.dtype == entry.case.dtype:
                product_flops = found.infos[product]['flops']
                row[field] = share_of_peak(mine, samples, flops, product_flops)
                row[f'{name}_gflops_per_s'] = product_flops / (median(samples) * 1e6)
                row['samples_ms'][name] = samples


def add_factors(rows: Sequence[dict[str, Any]], kind: str) -> None:
    """Adds to each row of a sweep by which factor time and memory grew over the row before.

    Args:
        rows: The rows in rising order, measured in the same rounds.
        kind: `'resolution'` or `'window'`.
    """
    for index, row in enumerate(rows):
        row['sweep'] = kind
        before = rows[index - 1] if index else None
        row['time_factor'] = _grown(row, before, 'ours')
        row['peers_time_factor'] = {name: _grown(row, before, name) for name in row['peers_ms']}
        peaks = (row['ours_peak_mb'], before['ours_peak_mb']) if before else (None, None)
        row['memory_factor'] = peaks[0] / peaks[1] if peaks[0] and peaks[1] else None


def _grown(row: Mapping[str, Any], before: Mapping[str, Any] | None, name: str) -> float | None:
    above = row['samples_ms'].get(name)
    below = before['samples_ms'].get(name) if before else None
    return pairwise_ratio(above, below) if above and below else None


def make_header(
    absent: Mapping[str, str], settings: Mapping[str, Any], threads: int, device: str
) -> dict[str, Any]:
    """What the figures depend on: command, machine, versions.

    Args:
        absent: Peers that are not installed, and how to get them.
        settings: Settings of the run.
        threads: Threads per contestant.
        device: `'cpu'` or `'cuda'`.
    """
    versions = {'python': platform.python_version(), 'torch': torch.__version__}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        'command': shlex.join(['python', *sys.argv]),
        'date': time.strftime('%Y-%m-%d %H:%M %z'),
        'machine': describe_machine(threads, device),
        'versions': {'swinv2_mm': swinv2_mm.__version__, **versions},
        'settings': dict(settings),
        'absent': dict(absent),
    }


def describe_machine(threads: int, device: str) -> dict[str, Any]:
    """Processor, cores, memory and GPU."""
    gpu = torch.cuda.get_device_name() if device == 'cuda' else None
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return {
        'cpu': _cpu_model(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'cores': os.cpu_count(),
        'threads': threads,
        'ram_gb': round(pages / 2**30, 1),
        'gpu': gpu,
        'system': platform.platform(),
    }


def _cpu_model() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the results; a broken write leaves the file as it was."""
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + '\n', encoding='utf-8')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_results(path: Path) -> dict[str, Any]:
    """Reads what `write_results` wrote.

    Raises:
        ValueError: The file holds something else.
        FileNotFoundError: There is none.
    """
    try:
        results = json.loads(path.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is no json file: {error}') from error
    if not isinstance(results, dict) or not {'header', 'rows'} <= set(results):
        raise ValueError(f'{path} holds no results of a benchmark: expected header and rows')
    return results


def cases_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for every row, without what all rows have in common."""
    fields = [
        key
        for key in ('input', 'window', 'mode', 'backend')
        if key == 'input' or len({row[key] for row in rows}) > 1
    ]
    words = {'window': 'w{}', 'backend': '({})'}
    return [' '.join(words.get(key, '{}').format(row[key]) for key in fields) for row in rows]
