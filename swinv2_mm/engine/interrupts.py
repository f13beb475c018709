"""Signals during a training, and processes of a run that are stopped or lost."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import distributed

from swinv2_mm.engine.checkpoint_hook import AtomicCheckpointHook
from swinv2_mm.engine.console import fail
from swinv2_mm.registry import HOOKS

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_CODES = {'SIGINT': EXIT_INTERRUPTED, 'SIGTERM': EXIT_TERMINATED, 'SIGUSR1': EXIT_TERMINATED}
"""Signals and the exit codes that they lead to."""
_SAME_PRESS = 1.0
"""Seconds within which a second signal is the same one: the terminal, Slurm and torchrun all pass it on."""


class Interrupted(KeyboardInterrupt, SystemExit):
    """The training was stopped by a signal; a program that does not catch it ends with `code` and no traceback.

    `iteration` is the number of iterations of the checkpoint, None if it was stopped at once.
    """

    def __init__(self, code: int, iteration: int | None = None) -> None:
        super().__init__(code)
        self.code, self.iteration = code, iteration


@HOOKS.register_module()
class InterruptHook(Hook):
    """On SIGINT (Ctrl-C), SIGTERM or SIGUSR1, finish the iteration, save a checkpoint and raise `Interrupted`.

    A second signal raises it at once. The processes of a distributed run agree after each iteration, so that all of
    them stop at the same one, whichever got the signal: one number is reduced over gloo, on the CPU. A validation is
    stopped after an iteration and repeated by a resumed run; with unequal numbers of batches per process it is
    finished. Only `AtomicCheckpointHook` saves at an iteration that is not due.

    Attributes:
        requested: The exit code that a signal asks for, or 0.
    """

    priority = 'LOWEST'  # after the checkpoint of the iteration

    def __init__(self) -> None:
        self.requested = self._asked = 0
        self._heard = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}
        self._group: Any = None
        self._together = False

    def before_train(self, runner: Runner) -> None:
        """Take over the signals."""
        if is_distributed() and distributed.get_backend() != 'gloo':
            self._group = distributed.new_group(backend='gloo')
        if threading.current_thread() is threading.main_thread():
            for name in _CODES:
                if number := getattr(signal, name, None):
                    self._previous[number] = signal.signal(number, self._hear)

    def after_train(self, runner: Runner) -> None:
        """Restore the handlers of the signals."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        """Stop if asked to; after the last iteration of an epoch, `after_train_epoch` does."""
        if self._agreed() and not _holds_gradients(runner):
            by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
            if not (by_epoch and self.end_of_epoch(runner.train_dataloader, batch_idx)):
                self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop if asked to in the last iteration."""
        if self._agreed() and not _holds_gradients(runner):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out whether all processes have the same number of batches."""
        length = len(runner.val_dataloader)
        self._together = self._largest(length) == -self._largest(-length)

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Stop a validation within a training if asked to."""
        if self._previous and self._together and self._agreed():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # put the weights of the training back
            self._stop(runner, runner.epoch, runner.iter)

    def _agreed(self) -> int:
        """Return the exit code that any process was asked for, or 0."""
        if code := self._largest(self._asked):  # a signal may come meanwhile
            self.requested = code
        return code

    def _largest(self, number: int) -> int:
        """Return the largest number of all processes."""
        if not is_distributed():
            return number
        reduced = torch.tensor(number)
        distributed.all_reduce(reduced, distributed.ReduceOp.MAX, self._group)
        return int(reduced)

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> None:
        """Save what is not saved yet, and end the training."""
        for hook in runner.hooks:
            if isinstance(hook, AtomicCheckpointHook):
                hook.save_now(runner, epoch, iteration)
        raise Interrupted(self.requested, iteration)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            return  # a data loading process, forked with this handler; it ends with the training
        now = time.monotonic()
        if self._heard and now - self._heard > _SAME_PRESS:
            raise Interrupted(self.requested)
        if not self._heard:
            self._heard = now
            self._asked = self.requested = _CODES[signal.Signals(number).name]
            again = 'press Ctrl-C again' if number == signal.SIGINT else 'send it again'
            # Python's streams cannot be written to from a signal handler that interrupts a write to them.
            os.write(1, f'stopping after this iteration; {again} to stop at once\n'.encode())


def raise_interrupts() -> None:
    """Raise KeyboardInterrupt on Ctrl-C from now on; before, the tools end at once."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_signals() -> None:
    """Ignore the signals that end a training from now on."""
    for name in _CODES:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


def _holds_gradients(runner: Runner) -> bool:
    """Return whether several processes have accumulated gradients, which a checkpoint does not hold."""
    wrapper = runner.optim_wrapper
    return (
        runner.world_size > 1 and isinstance(wrapper, OptimWrapper) and not wrapper.should_update()
    )


_DONE = 1 << 40
"""Added to the beats of a process that has finished."""


@HOOKS.register_module()
class HeartbeatHook(Hook):
    """End this process with exit code 1 if the process of the next rank does not respond.

    Other processes wait for one that is stopped or unreachable until the timeout of the process group, by default 30
    minutes. Here a thread of each process counts up a number in the store of the group and looks at that of the next
    rank. A process that is slow still counts, so that the timeout can be short.

    Args:
        timeout: Seconds without response after which a process counts as lost.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self._begun, self._ended = threading.Event(), threading.Event()

    def before_run(self, runner: Runner) -> None:
        """Start the thread of a distributed run, and wait for its first beat."""
        port = os.environ.get('MASTER_PORT')
        if runner.world_size > 1 and port and 'MASTER_ADDR' in os.environ:
            self._ended.clear()
            arguments = (os.environ['MASTER_ADDR'], int(port), runner.rank, runner.world_size)
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()
            self._begun.wait(self.timeout)

    def after_run(self, runner: Runner) -> None:
        """Stop the thread."""
        self._ended.set()

    def _watch(self, address: str, port: int, rank: int, world_size: int) -> None:
        """Beat, and count how often the next rank did not."""
        following = (rank + 1) % world_size
        interval = min(2.0, self.timeout / 5)
        seen = missed = 0
        store, ended = None, False
        while True:
            try:
                # A connection of its own: a process may wait in the group's for long.
                store = store or distributed.TCPStore(
                    address, port, is_master=False, timeout=timedelta(seconds=self.timeout / 2)
                )
                store.add(f'swinv2_mm/beat/{rank}', _DONE if ended else 1)
                beats = store.add(f'swinv2_mm/beat/{following}', 0)
                lost = f'process {following} does not respond: it was stopped or killed, or its machine is lost'
            except RuntimeError as error:
                store, beats = None, seen
                lost = f'the connection to the first process at {address}:{port} is lost ({str(error).splitlines()[0]})'
            self._begun.set()
            if ended or beats >= _DONE:
                return
            # Turns are counted, not time: a job that is suspended as a whole has lost nobody.
            missed = 0 if beats != seen else missed + 1
            seen = beats
            if seen and missed * interval >= self.timeout:
                fail(f'After {self.timeout:g} s, {lost}. This run ends.', rank)
                os._exit(1)
            ended = self._ended.wait(interval)


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
            if (
                loader is not None
                and getattr(loader.worker_init_fn, 'func', None) is not guard_worker
            ):
                loader.worker_init_fn = functools.partial(
                    guard_worker, os.getpid(), loader.worker_init_fn
                )


def guard_worker(parent: int, init: Callable[[int], object] | None, worker: int) -> None:
    """Watch the parent process from a thread, then run the loader's own `worker_init_fn`."""
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
