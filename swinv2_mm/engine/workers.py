"""Processes that load data: they end with the main process, and leave its signals to it."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from swinv2_mm.registry import HOOKS

_INTERVAL = 2.0
"""Seconds between two looks at the parent process."""


@HOOKS.register_module()
class LoaderWorkersHook(Hook):
    """Make the workers of the data loaders end within seconds when the main process was killed.

    torch's workers look for their parent only while they wait for work. One that has loaded a batch waits for ever to
    hand it over, and keeps its memory and the terminal's pipe. SIGTERM, SIGUSR1 and SIGINT to all processes of a job
    are left to the main process, which needs its workers to finish the iteration.
    """

    def before_run(self, runner: Runner) -> None:
        """Set what the workers run when they start; a `worker_init_fn` of the config still runs."""
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            loader = getattr(loop, 'dataloader', None) if isinstance(loop, BaseLoop) else None
            if loader is not None and not _is_guarded(loader.worker_init_fn):
                loader.worker_init_fn = functools.partial(
                    guard_worker, os.getpid(), loader.worker_init_fn
                )


def guard_worker(parent: int, init: Callable[[int], object] | None, worker: int) -> None:
    """Watch the parent process from a thread, then run the loader's own `worker_init_fn`.

    Args:
        parent: Id of the process that started this one.
        init: The loader's own function, or None.
        worker: Number of this worker.
    """
    for name in ('SIGINT', 'SIGUSR1'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    waits = hasattr(signal, 'sigtimedwait')
    if waits:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_watch, args=(parent, waits), daemon=True).start()
    if init is not None:
        init(worker)


def ignore_lost_workers() -> None:
    """Leave out torch's handler of SIGCHLD from now on, whose exception would cut a report of a failure short."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _watch(parent: int, waits: bool) -> None:
    """End this process when its parent is gone, or asks for it with SIGTERM; ignore SIGTERM from others."""
    while os.getppid() == parent:
        if not waits:
            time.sleep(_INTERVAL)
            continue
        caught = signal.sigtimedwait({signal.SIGTERM}, _INTERVAL)
        if caught is not None and caught.si_pid == parent:
            break
    os._exit(0)


def _is_guarded(init: object) -> bool:
    """Return whether a `worker_init_fn` is this module's."""
    return isinstance(init, functools.partial) and init.func is guard_worker
