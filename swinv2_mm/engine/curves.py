"""Curves of a training: `curves.png` in the work directory, and TensorBoard."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization import TensorboardVisBackend

from swinv2_mm.engine.checkpoint_files import replace_file
from swinv2_mm.registry import HOOKS, VISBACKENDS

CURVES_FILE = 'curves.png'
_NOT_METRICS = ('step', 'time', 'data_time', 'memory', 'epoch', 'iter')
Series = dict[str, dict[float, float]]
"""Values of a curve by iteration, by the name of the curve."""


@VISBACKENDS.register_module()
class TensorboardBackend(TensorboardVisBackend):
    """mmengine's `TensorboardVisBackend`, without which a run goes on if TensorBoard is not installed."""

    def _init_env(self) -> None:
        """Open the event file, or log why there is none."""
        try:
            super()._init_env()
            _silence_writer()
        except OSError:
            raise
        except Exception as error:  # versions of tensorboard and numpy that do not fit together
            reason = 'is not installed' if isinstance(error, ImportError) else f'fails ({error})'
            print_log(
                f'tensorboard {reason}: the run writes no event file (pip install tensorboard)',
                'current',
                30,
            )
            self._tensorboard = _NoWriter()


def _silence_writer() -> None:
    """Let TensorBoard's thread end without a stack trace; the next write raises its error again, in the main thread."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != '_AsyncWriterThread':
            before(args)

    threading.excepthook = hook


class _NoWriter:
    """A `SummaryWriter` that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


class SafeHook(Hook):
    """A hook whose errors are logged once and do not end the run."""

    _failed = False

    def attempt(self, runner: Runner, action: Callable[..., Any], *args: Any) -> None:
        """Call `action(runner, *args)` in the first process; log the first error."""
        if runner.rank:
            return
        try:
            action(runner, *args)
        except Exception as error:
            if not self._failed:
                runner.logger.warning(
                    f'{type(self).__name__}: no picture: {type(error).__name__}: {error}'
                )
            self._failed = True


@HOOKS.register_module()
class CurvesHook(SafeHook):
    """Draw losses, learning rate and metrics into `curves.png` after each validation and at the end.

    The values are those that mmengine's `LoggerHook` and `LocalVisBackend` write into `*/vis_data/scalars.json` of the
    work directory, also by the runs that this one continues.
    """

    priority = 'LOWEST'  # after LoggerHook

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw the curves of a training."""
        if isinstance(runner._train_loop, (dict, type(None))):
            return  # a validation without a training
        self.attempt(runner, self._draw)

    def after_train(self, runner: Runner) -> None:
        """Draw the curves."""
        self.attempt(runner, self._draw)

    def _draw(self, runner: Runner) -> None:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        length = len(runner.train_dataloader) if by_epoch else 0
        logs_epochs = any(
            isinstance(hook, LoggerHook) and hook.log_metric_by_epoch for hook in runner.hooks
        )
        files = sorted(Path(runner.work_dir).glob('[0-9]*_[0-9]*/vis_data/scalars.json'))
        losses, rates, metrics = read_scalars(files, length if logs_epochs else 1)
        if losses or metrics:
            label = f'iteration (an epoch has {length})' if length else 'iteration'
            picture = draw_curves(losses, rates, metrics, label)
            replace_file(Path(runner.work_dir, CURVES_FILE), picture)


def read_scalars(files: Iterable[Path], length: int = 1) -> tuple[Series, Series, Series]:
    """Return losses, learning rates and metrics of a training.

    Args:
        files: `scalars.json` of the run and of those that it continues, in their order. From the point where one
            begins, it replaces the earlier ones.
        length: Iterations per step of the validations: 1, or the length of an epoch if they are logged by epoch. With
            0, their steps are unknown, and a validation belongs to the last iteration that was logged.
    """
    losses: Series = {}
    rates: Series = {}
    metrics: Series = {}
    for file in files:
        last: float | None = None
        for line in file.read_bytes().splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            if not isinstance(values, dict) or 'step' not in values:
                continue
            trained = 'loss' in values
            step = values['step'] if trained else values['step'] * length or last or 0
            if last is None:
                for series in (*losses.values(), *rates.values(), *metrics.values()):
                    for later in [point for point in series if point >= step]:
                        del series[later]
            last = step
            for key, value in values.items():
                if not isinstance(value, (int, float)) or key in _NOT_METRICS:
                    continue
                if not trained:
                    metrics.setdefault(key, {})[step] = value
                elif 'loss' in key:
                    losses.setdefault(key, {})[step] = value
                elif key == 'lr':
                    rates.setdefault(key, {})[step] = value
    return losses, rates, metrics


def draw_curves(losses: Series, rates: Series, metrics: Series, label: str) -> bytes:
    """Return a PNG with one plot for losses, learning rate, and metrics up to 1 and above; see `read_scalars`.

    The total loss is drawn as it is and smoothed, its parts smoothed. COCO's -1 for absent sizes is left out.
    """
    from matplotlib.figure import Figure

    found = {
        key: values for key, values in metrics.items() if min(values.values(), default=-1) >= 0
    }
    large = {key: values for key, values in found.items() if max(values.values()) > 1}
    small = {key: values for key, values in found.items() if key not in large}
    plots = [('loss', losses), ('learning rate', rates), ('metric', small), ('metric', large)]
    plots = [(name, series) for name, series in plots if series]
    figure = Figure(figsize=(9, 3.2 * len(plots)), dpi=80)
    all_axes = figure.subplots(len(plots), sharex=True, squeeze=False)[:, 0]
    for axes, (name, series) in zip(all_axes, plots):
        for count, (key, values) in enumerate(series.items()):
            steps = list(values)
            if name != 'loss':
                style = ('-', '--', ':')[count // 10 % 3] if name == 'metric' else '-'
                marker = '.' if name == 'metric' else None
                axes.plot(steps, list(values.values()), style, marker=marker, label=key)
                continue
            total = key == 'loss'
            (line,) = axes.plot(steps, smoothed(values.values()), lw=2 if total else 1, label=key)
            if total:
                axes.plot(steps, list(values.values()), color=line.get_color(), alpha=0.25, lw=1)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.ticklabel_format(axis='y', scilimits=(-3, 4))
        if len(series) > 1 or name == 'metric':
            axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    all_axes[-1].set_xlabel(label)
    figure.subplots_adjust(left=0.11, right=0.74, top=0.98, bottom=0.16 / len(plots) + 0.02)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue()


def smoothed(values: Iterable[float], weight: float = 0.6) -> list[float]:
    """Return the exponential moving average as TensorBoard draws it: unbiased at the start, NaN passed over."""
    average, total, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + 1 - weight
        result.append(average / total if total else math.nan)
    return result
