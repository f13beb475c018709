"""Remembering what inference computes from weights alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor


class EvalCache:
    """Values computed from weights, kept for as long as the weights are the same.

    The weights are compared by value with a copy, since not every change of a parameter leaves a trace: optimizers,
    `load_state_dict` and moves do, edits through `.data` do not. That is cheap for the few weights of a
    position bias on a CPU, and only there.

    Args:
        entries: How many values it holds; the oldest gives way.
    """

    def __init__(self, entries: int = 8) -> None:
        self._entries = entries
        self._weights: list[Tensor] = []
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, weights: Iterable[Tensor], compute: Callable[[], Any]) -> Any:
        """The value of `key`, computed if it is not known for these weights."""
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
        """Forget everything."""
        self._weights, self._values = [], {}

    def _same(self, weights: list[Tensor]) -> bool:
        return len(weights) == len(self._weights) and all(
            new.dtype == old.dtype and new.device == old.device and torch.equal(new, old)
            for new, old in zip(weights, self._weights)
        )

    def __reduce__(self) -> tuple[type[EvalCache], tuple[int]]:
        # Copies and files of a model start with an empty cache.
        return EvalCache, (self._entries,)
