"""Statistics of samples, and result files."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import swinv2_mm

_DISTRIBUTIONS = (
    *(
        'torchvision',
        'numpy',
        'onedl-mmengine',
        'onedl-mmcv',
        'onedl-mmdetection',
        'timm',
        'triton',
    ),
)
median = statistics.median


def say(text: str) -> None:
    """Print a progress message."""
    print(text, file=sys.stderr, flush=True)


def quartiles(samples: Sequence[float]) -> list[float]:
    """Return the first and third quartile."""
    if len(samples) < 2:
        return [samples[0], samples[0]]
    first, _, third = statistics.quantiles(samples, n=4, method='inclusive')
    return [first, third]


def pairwise_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of the ratio of two samples of one round.

    If the machine is slow for a while, both samples of a round are affected, so this ratio is more precise than the
    ratio of two medians.

    Raises:
        ValueError: The numbers of samples differ or are zero.
    """
    if len(above) != len(below) or not above:
        raise ValueError(
            f'{len(above)} and {len(below)} samples: expected one of each per round, and at least one round'
        )
    return median([a / b for a, b in zip(above, below)])


def compare(
    samples: Mapping[str, Sequence[float]], peaks: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return medians, quartiles and peaks by contestant, and ratios of peers to our fastest backend (`'ours...'`)."""
    ms = {name: median(taken) for name, taken in samples.items()}
    mine = min((name for name in ms if name.startswith('ours')), key=lambda n: ms[n], default=None)
    peers = [name for name in samples if mine and not name.startswith('ours')]
    ratios = {name: pairwise_ratio(samples[name], samples[mine]) for name in peers if mine}
    first = min(ratios, key=lambda name: ratios[name], default=None)
    our_peak, peak = (peaks.get(name) if name else None for name in (mine, first))
    return {
        'rounds': max(map(len, samples.values())),
        'ms': ms,
        'quartiles_ms': {name: quartiles(taken) for name, taken in samples.items()},
        'peak_mb': dict(peaks),
        'ours': mine,
        'ratios': ratios,
        'fastest_peer': first,
        'ratio_to_fastest': ratios[first] if first else None,
        'memory_ratio': our_peak / peak if our_peak and peak else None,
        'samples_ms': {name: list(taken) for name, taken in samples.items()},
    }


def add_factors(rows: Sequence[dict[str, Any]], kind: str) -> None:
    """Add to each row of a sweep the growth of time and memory of each contestant relative to the previous row."""
    for row in rows:
        row['sweep'], row['time_factor'], row['memory_factor'] = kind, {}, {}
    for before, row in itertools.pairwise(rows):
        for name in row['ms'].keys() & before['ms'].keys():
            pair = row['samples_ms'][name], before['samples_ms'][name]
            row['time_factor'][name] = pairwise_ratio(*pair)
            if row['peak_mb'][name] and before['peak_mb'][name]:
                row['memory_factor'][name] = row['peak_mb'][name] / before['peak_mb'][name]


def make_header(
    command: str, settings: Mapping[str, Any], threads: int, device: str
) -> dict[str, Any]:
    """Return command, machine and versions."""
    versions = {'swinv2_mm': swinv2_mm.__version__, 'python': platform.python_version()}
    versions['torch'] = torch.__version__
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        line = next(line for line in lines if line.startswith('model name'))
        cpu = line.partition(':')[2].strip()
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    machine = {
        'cpu': cpu,
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'cores': os.cpu_count(),
        'threads': threads,
        'ram_gb': round(pages / 2**30, 1),
        'gpu': torch.cuda.get_device_name() if device == 'cuda' else None,
        'system': platform.platform(),
    }
    return {
        'command': command,
        'date': time.strftime('%Y-%m-%d %H:%M %z'),
        'machine': machine,
        'versions': versions,
        'settings': dict(settings),
    }


class Results:
    """Results of a running benchmark. Every change is saved at once, so that interrupted runs keep their results.

    Args:
        header: Header from `make_header`.
        path: The json file; None to not save results.
    """

    def __init__(self, header: Mapping[str, Any] | None, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {'header': header, 'rows': [], 'failed': []}
        self.content['finished'] = False
        self._lock = threading.RLock()  # contestants are prepared in threads
        self._write()

    def add(self, row: Mapping[str, Any] | None) -> None:
        """Add a row; None is ignored."""
        with self._lock:
            if row is not None:
                self.content['rows'].append(_finite(row))
            self._write()

    def fail(self, what: str, why: str) -> None:
        """Add a failed measurement and its reason."""
        say(f'{what}: {why}')
        with self._lock:
            self.content['failed'].append({'what': what, 'why': why})
            self._write()

    def finish(self) -> None:
        """Mark the run as complete."""
        self.content['finished'] = True
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_results(self.path, self.content)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which json does not support, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results; a failed write does not change the file."""
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        part.write_text(json.dumps(results, indent=1, allow_nan=False) + '\n', encoding='utf-8')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_results(path: Path) -> dict[str, Any]:
    """Read results from `write_results`.

    Raises:
        ValueError: The file is not a result file.
        FileNotFoundError: The file does not exist.
    """
    try:
        results = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{path} does not exist') from error
    except ValueError as error:
        raise ValueError(f'{path} is not a json file: {error}') from error
    if not isinstance(results, dict) or not {'header', 'rows', 'failed'} <= set(results):
        raise ValueError(f'{path} is not a result of a benchmark: expected header, rows and failed')
    return results


@contextlib.contextmanager
def shape_of(path: Path) -> Iterator[None]:
    """Report the file if its results do not have the expected structure.

    Raises:
        ValueError: The structure is wrong.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        kind = f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} has results of another shape than expected ({kind})') from error
