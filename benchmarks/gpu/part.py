"""What every part of the report gets and does."""

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

# In the order of their worth, with their share of the time. What a part leaves unused goes to those after it.
PARTS = {'tests': 0.2, 'kernels': 0.16, 'backbones': 0.36, 'detectors': 0.16, 'training': 0.12}


@dataclass
class PartOptions:
    """How a part runs.

    Attributes:
        device: `'cuda'` or `'cpu'`.
        quick: Whether to use tiny sizes: a trial of the report itself.
        deadline: When the part is ended, by `time.monotonic`.
        inbox: Says when its turn has come to a part that was started before, to prepare what it measures.
    """

    device: str
    quick: bool
    deadline: float
    inbox: queue.Queue[dict[str, Any]] | None = None

    def wait_for_turn(self) -> None:
        """Wait until the parts before have ended; from then on the part has the seconds that it is told."""
        if self.inbox is not None:
            self.deadline = self.inbox.get()['with']['seconds'] + time.monotonic()
            self.inbox = None

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.deadline - time.monotonic()

    @property
    def is_cuda(self) -> bool:
        """Whether the part runs on a CUDA device."""
        return self.device == 'cuda'

    def pool(self, is_local: bool = True) -> Pool:
        """The processes of contestants, or this one for all."""
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
    """Run a part, in its process; `is_early`: prepare at low priority, and then wait for the turn."""
    options = PartOptions(device, quick, time.monotonic() + seconds, inbox if is_early else None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`
    if is_early:
        os.nice(10)  # leave the cores to those whose turn it is
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
