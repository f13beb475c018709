"""Packages that kernels need: if one of them is missing or broken, operators of torch run instead."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


def unusable(package: str, error: Exception) -> str:
    """Warn once that the kernels of a package do not run; return why, in words that fit after "because"."""
    reason = f'the package {package} is not installed, or cannot be imported ({error})'
    _warn_once(f"swinv2_mm runs torch's operators instead of its {package} kernels: {reason}")
    return reason


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


try:
    from torch.utils.flop_counter import flop_registry, register_flop_formula
except Exception as error:  # it imports Triton, and a broken package raises anything
    unusable('triton', error)
    flop_registry = {}

    def register_flop_formula(targets: Any, get_raw: bool = False) -> Callable[..., Any]:  # type: ignore[misc]
        """Return the function as it is, since there is no flop counter."""
        return lambda function: function


def assume_constant_result(function: Any) -> Any:
    """See `torch.compiler.assume_constant_result`, which imports the compiler and Triton."""
    function._dynamo_marked_constant = True
    return function
