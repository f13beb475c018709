"""The lines that a user watches while a run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.console import Console
from swinv2_mm.engine.metrics import format_metrics

_LONGEST_SILENCE = 30.0
"""Seconds after which a line is due, however slow an iteration is."""
_EVALUATION_SILENCE = 10.0
_NAN_PATIENCE = 10
"""Iterations in a row whose loss may be NaN or infinite before the run is stopped."""


class ProgressHook(Hook):
    """Prints a line every so many training iterations, and the metrics after each evaluation.

    Args:
        console: Where to print.
        interval: Training iterations per line.

    Attributes:
        metrics: Those of the last evaluation, or None before the first.
        started: When the training began, in seconds since the epoch.
        iteration: Training iterations done.
    """

    priority = 'VERY_LOW'  # after the scalars of the iteration are in

    def __init__(self, console: Console, interval: int) -> None:
        self.console = console
        self.interval = interval
        self.metrics: dict[str, float] | None = None
        self.started = time.time()
        self.iteration = 0
        self._last_line = 0.0
        self._bad_losses = 0

    def before_train(self, runner: Runner) -> None:
        """Notes the time at which iterations begin."""
        self.started = time.time()
        self.iteration = runner.iter
        if runner.iter >= runner.max_iters:
            self.console.warn(
                f'the checkpoint is at iteration {runner.iter} and the training ends at {runner.max_iters}: '
                'nothing is left to do.'
            )
        self._last_line = time.monotonic()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Prints the line, if one is due, and watches over the loss."""
        self._check_loss(runner, outputs or {})
        self.iteration = done = runner.iter + 1
        total = runner.max_iters
        late = time.monotonic() - self._last_line > _LONGEST_SILENCE
        if done % self.interval and done != total and not late:
            return
        self._last_line = time.monotonic()
        self.console.say(self._train_line(runner, done, total))

    def _train_line(self, runner: Runner, done: int, total: int) -> str:
        """Returns progress, loss, learning rate, speed, time to go and memory."""
        scalars = runner.message_hub.log_scalars
        window = min(self.interval, done)
        parts = [f'train {done:>{len(str(total))}}/{total}']
        if runner.max_epochs and runner.max_epochs > 1:
            parts[0] += f' (epoch {runner.epoch + 1}/{runner.max_epochs})'
        for name in ('loss', 'lr'):
            if f'train/{name}' in scalars:
                buffer = scalars[f'train/{name}']
                value = buffer.mean(window) if name == 'loss' else buffer.current()
                parts.append(f'{name} {value:.4f}' if name == 'loss' else f'{name} {value:.2e}')
        if 'train/time' in scalars:
            parts.append(f'{scalars["train/time"].mean(window):.2f} s/it')
        parts.append(f'eta {_duration(runner.message_hub.runtime_info.get("eta", 0))}')
        if torch.cuda.is_available():
            parts.append(f'memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB')
        return '  '.join(parts)

    def _check_loss(self, runner: Runner, outputs: dict[str, Any]) -> None:
        """Stops a run whose loss stays NaN or infinite.

        Raises:
            FloatingPointError: That is so.
        """
        loss = outputs.get('loss')
        if loss is None or math.isfinite(float(loss)):
            self._bad_losses = 0
            return
        self._bad_losses += 1
        if self._bad_losses == 1:
            self.console.warn(f'the loss is {float(loss)} at iteration {runner.iter + 1}')
        if self._bad_losses >= _NAN_PATIENCE:
            raise FloatingPointError(
                f'the loss is {float(loss)} for {_NAN_PATIENCE} iterations in a row, up to iteration {runner.iter + 1}'
            )

    def before_val_epoch(self, runner: Runner) -> None:
        """Notes the time at which the evaluation begins."""
        self._last_line = time.monotonic()

    before_test_epoch = before_val_epoch

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Prints how far the evaluation has come."""
        self._evaluation_line(runner, batch_idx, len(runner.val_dataloader))

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Prints how far the evaluation has come."""
        self._evaluation_line(runner, batch_idx, len(runner.test_dataloader))

    def _evaluation_line(self, runner: Runner, batch_idx: int, total: int) -> None:
        """Prints a line if the last one is old."""
        if time.monotonic() - self._last_line < _EVALUATION_SILENCE:
            return
        self._last_line = time.monotonic()
        eta = runner.message_hub.runtime_info.get('eta', 0)
        self.console.say(
            f'evaluating {batch_idx + 1:>{len(str(total))}}/{total}  eta {_duration(eta)}'
        )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Prints and keeps the metrics."""
        self.metrics = dict(metrics or {})
        for line in describe_metrics(self.metrics):
            self.console.say(f'validation at iteration {runner.iter}: {line}')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metrics; the tool prints them at its end."""
        self.metrics = dict(metrics or {})


def describe_metrics(metrics: dict[str, float] | None) -> list[str]:
    """Returns the metrics as lines, or what their absence means."""
    if metrics is None:
        return ['none, no evaluation was run']
    return format_metrics(metrics) or ['none, nothing was detected in any image']


def _duration(seconds: float) -> str:
    """Returns a number of seconds as h:mm:ss."""
    return str(timedelta(seconds=int(seconds)))
