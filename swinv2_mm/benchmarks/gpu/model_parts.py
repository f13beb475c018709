"""Times the parts of a prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swinv2_mm.benchmarks.gpu.part import PartOptions
from swinv2_mm.benchmarks.summary import median
from swinv2_mm.benchmarks.task import Task, seconds

_METHODS = {
    'backbone': 'forward',
    'neck': 'forward',
    'rpn_head': 'predict',
    'roi_head': 'predict',
    'decode_head': 'predict',
}
"""Attributes of detectors and segmenters, and the method of each that a prediction calls."""


def wall_milliseconds(call: Callable[[], Any], options: PartOptions) -> float:
    """Time of a call by the clock, between synchronisations: what it does on the CPU counts, too."""
    return 1000 * seconds(Task(call, None, options.device))


def part_times(
    model: Any, predict: Callable[[], Any], options: PartOptions, rounds: int
) -> dict[str, float]:
    """Median milliseconds of backbone, neck and heads.

    Args:
        model: A detector or segmenter of mmdet or mmseg.
        predict: Predicts by it.
        options: Where it runs.
        rounds: Number of predictions.
    """
    parts = [name for name in _METHODS if getattr(model, name, None) is not None]
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for name in parts:
        _time_method(getattr(model, name), _METHODS[name], samples[name], options)
    try:
        for _ in range(rounds):
            predict()
    finally:
        for name in parts:
            delattr(getattr(model, name), _METHODS[name])
    return {name: median(taken) for name, taken in samples.items() if taken}


def _time_method(module: Any, method: str, samples: list[float], options: PartOptions) -> None:
    """Let a method add the milliseconds of every call to `samples`, until it is deleted from `module`."""
    original = getattr(module, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        results = []
        samples.append(
            wall_milliseconds(lambda: results.append(original(*args, **kwargs)), options)
        )
        return results[0]

    setattr(module, method, timed)
