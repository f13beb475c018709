"""Cache of values that inference computes from weights alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

_MISSING = object()


def _same(weights: list[Tensor], others: list[Tensor]) -> bool:
    return len(weights) == len(others) and all(
        new.dtype == old.dtype and new.device == old.device and torch.equal(new, old)
        for new, old in zip(weights, others)
    )


class EvalCache:
    """Cache of values computed from weights, valid as long as the weights do not change.

    The weights are compared by value with a copy, because edits through `.data` do not change the version of a
    parameter. This is cheap only on a CPU, for the few weights of a position bias.

    Args:
        entries: Maximum number of values; the oldest is dropped.
    """

    def __init__(self, entries: int = 8) -> None:
        self._entries = entries
        self._kept: tuple[list[Tensor], dict[Hashable, Any]] = [], {}

    def get(self, key: Hashable, weights: Iterable[Tensor], compute: Callable[[], Any]) -> Any:
        """Return the value of `key`; compute it if it is not cached for these weights."""
        weights = list(weights)
        known, values = self._kept  # read together: another thread may replace them
        if not _same(weights, known):
            values = {}
            self._kept = [weight.detach().clone() for weight in weights], values
        value = values.get(key, _MISSING)
        if value is _MISSING:
            value = compute()
            while len(values) >= self._entries:
                values.pop(next(iter(list(values))), None)
            values[key] = value
        return value

    def __reduce__(self) -> tuple[type[EvalCache], tuple[int]]:
        # Copied and pickled models have an empty cache.
        return EvalCache, (self._entries,)
