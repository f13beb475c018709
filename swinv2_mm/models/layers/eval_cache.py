"""Cache of values that inference computes from weights alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor


class EvalCache:
    """Cache of values computed from weights, valid as long as the weights do not change.

    The weights are compared by value with a copy, because edits through `.data` do not change the version of a
    parameter. This is cheap only on a CPU, for the few weights of a position bias.

    Args:
        entries: Maximum number of values; the oldest is dropped.
    """

    def __init__(self, entries: int = 8) -> None:
        self._entries = entries
        self._weights: list[Tensor] = []
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, weights: Iterable[Tensor], compute: Callable[[], Any]) -> Any:
        """Return the value of `key`; compute it if it is not cached for these weights."""
        weights = list(weights)
        if not self._same(weights):
            self._values.clear()
            self._weights = [weight.detach().clone() for weight in weights]
        if key not in self._values:
            while len(self._values) >= self._entries:
                del self._values[next(iter(self._values))]
            self._values[key] = compute()
        return self._values[key]

    def clear(self) -> None:
        """Drop all values."""
        self._weights, self._values = [], {}

    def _same(self, weights: list[Tensor]) -> bool:
        return len(weights) == len(self._weights) and all(
            new.dtype == old.dtype and new.device == old.device and torch.equal(new, old)
            for new, old in zip(weights, self._weights)
        )

    def __reduce__(self) -> tuple[type[EvalCache], tuple[int]]:
        # Copied and pickled models have an empty cache.
        return EvalCache, (self._entries,)
