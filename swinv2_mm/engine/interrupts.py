"""Ctrl-C during a training: the iteration is finished first, so that no checkpoint is left half written."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.registry import HOOKS

_SAME_PRESS = 1.0
"""Seconds within which a second signal is the same press of the key: the terminal and torchrun both pass it on."""


@HOOKS.register_module()
class InterruptHook(Hook):
    """Raise `KeyboardInterrupt` at the end of the iteration in which Ctrl-C was pressed; at once if pressed again.

    Between two iterations nothing is being written. mmengine removes the oldest checkpoint before it writes the newest:
    cut short in between, a training that keeps one checkpoint has none.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    priority = 'LOWEST'  # after the checkpoint of the iteration

    def __init__(self) -> None:
        self.requested = False
        self._heard = 0.0
        self._process = os.getpid()
        self._previous: Any = None

    def before_train(self, runner: Runner) -> None:
        """Take over the signal."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._hear)

    def after_train(self, runner: Runner) -> None:
        """Restore the signal's handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _stop_if_requested(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Stop here if asked to."""
        if self.requested:
            raise KeyboardInterrupt

    after_train_iter = after_val_iter = _stop_if_requested

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if os.getpid() != self._process:
            return  # a data loading process, forked with this handler; it ends with the training
        now = time.monotonic()
        if self.requested and now - self._heard > _SAME_PRESS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._heard = True, now
            # Python's streams cannot be written to from a signal handler that interrupts a write to them.
            os.write(1, b'stopping after this iteration; press Ctrl-C again to stop at once\n')
