"""Options and execution of the parts of the report."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import Pool
from benchmarks.results import Results, make_header
from benchmarks.worker import one_line

# In the order of importance, with their share of the time. Unused time goes to the following parts.
PARTS = {'tests': 0.2, 'kernels': 0.16, 'backbones': 0.36, 'detectors': 0.16, 'training': 0.12}


@dataclass
class PartOptions:
    """Options of a part.

    Attributes:
        device: `'cuda'` or `'cpu'`.
        quick: Whether to use tiny sizes, to test the report itself.
        deadline: Time limit of the part (`time.monotonic`).
        inbox: Signals to a part that was started early that it may measure.
    """

    device: str
    quick: bool
    deadline: float
    inbox: queue.Queue[dict[str, Any]] | None = None

    def wait_for_turn(self) -> None:
        """Wait until the previous parts have ended, and receive the time limit."""
        if self.inbox is not None:
            self.deadline = self.inbox.get()['with']['seconds'] + time.monotonic()
            self.inbox = None

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.deadline - time.monotonic()

    @property
    def is_cuda(self) -> bool:
        """Whether the part runs on a CUDA device."""
        return self.device == 'cuda'

    def pool(self, is_local: bool = True) -> Pool:
        """Return the pool of processes, or of this process for all contestants."""
        threads = 1 if self.is_cuda and not is_local else torch.get_num_threads()
        return Pool(threads, self.device, is_local=is_local)


def run_part(
    name: str,
    *,
    device: str,
    quick: bool,
    seconds: float,
    out: str,
    command: str,
    is_early: bool,
    inbox: queue.Queue[dict[str, Any]],
) -> None:
    """Run a part in its process; with `is_early`, prepare at low priority and wait before measuring."""
    options = PartOptions(device, quick, time.monotonic() + seconds, inbox if is_early else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs `finally` blocks
    if is_early:
        os.nice(10)  # leave the cores to the part that measures
    settings = {'device': device, 'quick': quick}
    header = make_header(command, settings, torch.get_num_threads(), device)
    results = Results(header, Path(out))
    try:
        importlib.import_module(f'benchmarks.gpu.{name}').run(options, results)
    except Exception as error:
        traceback.print_exc()
        results.fail(name, one_line(error))
        raise
    results.finish()
