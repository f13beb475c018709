"""Ctrl-C during a training: the iteration is finished first, so that no checkpoint is left half written."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.console import Console

_SAME_PRESS = 1.0
"""Seconds within which a second signal is the same press of the key: the terminal and torchrun both pass it on."""


class InterruptHook(Hook):
    """Raises `KeyboardInterrupt` at the end of the iteration in which Ctrl-C was pressed; at once if pressed again.

    Between two iterations nothing is being written. mmengine removes the oldest checkpoint before it writes the newest:
    cut short in between, a training that keeps one checkpoint has none.

    Args:
        console: Where to say that the key was heard.

    Attributes:
        requested: Whether Ctrl-C was pressed.
    """

    priority = 'LOWEST'  # after the checkpoint of the iteration

    def __init__(self, console: Console) -> None:
        self.console = console
        self.requested = False
        self._heard = 0.0
        self._process = os.getpid()
        self._previous: Any = None

    def before_train(self, runner: Runner) -> None:
        """Takes over the signal."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._hear)

    def after_train(self, runner: Runner) -> None:
        """Gives the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Stops here if asked to."""
        self._stop_if_requested()

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Stops here if asked to."""
        self._stop_if_requested()

    def _stop_if_requested(self) -> None:
        if self.requested:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal."""
        if os.getpid() != self._process:
            return  # a data loading process, forked with this handler; it ends with the training
        now = time.monotonic()
        if self.requested and now - self._heard > _SAME_PRESS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._heard = True, now
            # The signal may have come in the middle of a line that is being printed.
            with contextlib.suppress(RuntimeError):
                self.console.say(
                    'stopping after this iteration; press Ctrl-C again to stop at once'
                )
