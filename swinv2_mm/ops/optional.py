"""Optional packages of the kernels; operators of torch run instead if one is missing or broken."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any


def unusable(package: str, error: Exception) -> str:
    """Warn once that the kernels of a package do not run; return why, as a clause that follows "because"."""
    reason = f'the package {package} is not installed, or cannot be imported ({error})'
    warn_once(f"swinv2_mm runs torch's operators instead of its {package} kernels: {reason}")
    return reason


@functools.cache
def warn_once(message: str) -> None:
    """Warn, unless the process has given this warning before."""
    warnings.warn(message, stacklevel=3)


try:
    from torch.utils.flop_counter import register_flop_formula
except Exception as error:  # it imports Triton, and a broken package can raise any error
    unusable('triton', error)

    def register_flop_formula(targets: Any) -> Callable[..., Any]:  # type: ignore[misc]
        """Return the function unchanged, since the flop counter is not available."""
        return lambda function: function
