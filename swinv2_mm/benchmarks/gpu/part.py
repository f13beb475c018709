"""What every part of the report gets and writes."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from swinv2_mm.benchmarks.results import make_header, write_results
from swinv2_mm.benchmarks.worker import one_line

# In the order of their worth, with their share of the time. What a part leaves unused goes to those after it.
PARTS = {'tests': 0.2, 'kernels': 0.16, 'backbones': 0.36, 'detectors': 0.16, 'training': 0.12}
_LIBRARIES = ('timm', 'triton')


@dataclass
class PartOptions:
    """How a part runs.

    Attributes:
        device: `'cuda'` or `'cpu'`.
        quick: Whether to use tiny sizes: a trial of the report itself.
        deadline: When the part is ended, by `time.monotonic`.
        is_early: Whether the part was started before its turn, to prepare what it will measure.
        command: Command line of the report.
    """

    device: str
    quick: bool
    deadline: float
    is_early: bool = False
    command: str = ''

    def wait_for_turn(self) -> None:
        """Wait until the parts before have ended; from then on the part has the seconds that it is told."""
        if self.is_early:
            self.deadline = float(sys.stdin.readline()) + time.monotonic()
            self.is_early = False

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.deadline - time.monotonic()

    @property
    def is_cuda(self) -> bool:
        """Whether the part runs on a CUDA device."""
        return self.device == 'cuda'


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which json has no words for: None in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Sink:
    """The json file of a part. Every change is written at once: a part that is ended keeps what it measured.

    Args:
        path: The file.
        options: How the part runs.
    """

    def __init__(self, path: Path, options: PartOptions) -> None:
        settings = {'device': options.device, 'quick': options.quick}
        header = make_header({}, settings, torch.get_num_threads(), options.device)
        header['command'] = options.command or header['command']
        for name in _LIBRARIES:
            with contextlib.suppress(PackageNotFoundError):
                header['versions'][name] = version(name)
        self.path = path
        self.content: dict[str, Any] = {
            'header': header,
            'rows': [],
            'failed': [],
            'finished': False,
        }
        self._lock = threading.RLock()  # contestants are prepared in threads
        self.write()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of figures."""
        with self._lock:
            self.content['rows'].append(_finite(row))
            self.write()

    def fail(self, what: str, error: BaseException | str) -> None:
        """Note what could not be measured, and why."""
        why = error if isinstance(error, str) else one_line(error)
        print(f'{what}: {why}', flush=True)
        with self._lock:
            self.content['failed'].append({'what': what, 'why': why})
            self.write()

    def finish(self) -> None:
        """Note that the part came to its end."""
        self.content['finished'] = True
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_results(self.path, self.content)
