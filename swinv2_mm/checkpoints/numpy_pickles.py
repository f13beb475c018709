"""Arrays and numbers of numpy in a pickle, rebuilt without trust in what the file says about them.

numpy trusts a pickle. `ndarray` takes bytes of the file for the addresses of Python objects if its arguments say so,
and a dtype takes over any fields, sizes and flags: enough to crash the process, or to run code with some patience. The
stand-ins here go by numpy's names while a file is read. They know numbers and texts, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, TypeVar

import numpy as np

_KIND = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}')
T = TypeVar('T')


def known_as(module: str, name: str) -> Callable[[T], T]:
    """Makes torch's unpickler find a class or function under another name."""

    def rename(thing: Any) -> Any:
        thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
        return thing

    return rename


@known_as('numpy', 'dtype')
class _Dtype:
    """Stands for `numpy.dtype` while a file is read.

    Attributes:
        dtype: The real one.
    """

    def __init__(self, kind: Any, *_: Any) -> None:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise UnpicklingError(f'Unsupported dtype {kind!r} of numpy')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields = tuple(state)[:5]
        if order not in ('<', '>', '=', '|') or (subdtype, names, fields) != (None, None, None):
            raise UnpicklingError(f'Unsupported state {state!r} of a dtype of numpy')
        self.dtype = self.dtype.newbyteorder(order)


@known_as('numpy', 'ndarray')
class _Array(np.ndarray):
    """An array that a file is read into, once; it is written as any other array."""

    _is_read = False

    def __new__(cls, *_: Any) -> _Array:
        raise UnpicklingError('Unsupported call of numpy.ndarray')

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        sound = isinstance(dtype, _Dtype) and isinstance(raw, bytes) and isinstance(shape, tuple)
        # A second time would free numbers that a tensor may have been made of.
        if self._is_read or not sound or any(type(size) is not int or size < 0 for size in shape):
            raise UnpicklingError('Unsupported state of numpy.ndarray')
        self._is_read = True
        super().__setstate__((1, shape, dtype.dtype, bool(is_fortran), raw))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _reconstruct(*_: Any) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), 'b')  # what numpy calls it with, too


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise UnpicklingError('Unsupported number of numpy')
    if len(raw) != dtype.dtype.itemsize:
        raise UnpicklingError(f'Unsupported number of numpy: {len(raw)} bytes for {dtype.dtype}')
    return np.frombuffer(raw, dtype.dtype)[0]


@known_as('builtins', 'bytes')
def _no_bytes(*given: Any) -> bytes:
    """Stands for `bytes()`, which is how the numbers of an empty array are written."""
    if given:
        raise UnpicklingError('Unsupported call of bytes')
    return b''


def numpy_globals() -> list[Any]:
    """Returns the stand-ins, for torch's list of what a file may name."""

    def wrapped(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
        return known_as(module, name)(lambda *args: function(*args))

    known: list[Any] = [_Dtype, _Array, _no_bytes]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # before and since numpy 2
        known.append(wrapped(_reconstruct, module, '_reconstruct'))
        known.append(wrapped(_scalar, module, 'scalar'))
    return known
