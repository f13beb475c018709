"""What a checkpoint may hold beside tensors: the functions and classes that its pickle may name.

torch calls what is on this list with arguments from the file, so each entry only makes or fills a container. Where the
real one does more, a stand-in takes its name while a file is read.

numpy trusts a pickle: `ndarray` takes bytes of the file for the addresses of Python objects if its arguments say so,
and a dtype takes any fields, sizes and flags, which is enough to crash the process or to run code. Its stand-ins read
numbers and texts only.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
from collections import OrderedDict
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, TypeVar

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging.history_buffer import HistoryBuffer
from torch.torch_version import TorchVersion

_KIND = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}')
_CONTAINERS = (
    *(bool, int, float, str, list, tuple, dict, frozenset, range, slice),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
    *(argparse.Namespace, types.SimpleNamespace, Config, ConfigDict, HistoryBuffer, TorchVersion),
)
T = TypeVar('T')


def _known_as(module: str, name: str) -> Callable[[T], T]:
    """Make torch's unpickler find a class or function under another name."""

    def rename(thing: Any) -> Any:
        thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
        return thing

    return rename


def allowed_globals() -> list[Any]:
    """Return the functions and classes that a checkpoint may name, for `torch.serialization.add_safe_globals`."""
    known = [*_CONTAINERS, _getattr, _no_bytes, _Dtype, _Array, _DefaultDict, _CfgNode]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # before and since numpy 2
        known.append(_renamed(_reconstruct, module, '_reconstruct'))
        known.append(_renamed(_scalar, module, 'scalar'))
    for module in ('pathlib', 'pathlib._local'):  # Python 3.13
        known.append(_renamed(pathlib.PurePosixPath, module, 'PosixPath'))
        known.append(_renamed(pathlib.PureWindowsPath, module, 'WindowsPath'))
    return known


def _renamed(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    return _known_as(module, name)(lambda *args: function(*args))


@_known_as('builtins', 'getattr')
def _getattr(owner: Any, name: str) -> Any:
    """Stands for `getattr`, by which `HistoryBuffer` refers to its own methods. The real one leads to `exec`."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return vars(HistoryBuffer)[name]
    raise UnpicklingError(f'GLOBAL getattr asks for {name!r} of {owner!r}')


@_known_as('builtins', 'bytes')
def _no_bytes(*given: Any) -> bytes:
    """Stands for `bytes`, which is how the numbers of an empty array are written."""
    if given:
        raise UnpicklingError('Unsupported call of bytes')
    return b''


@_known_as('collections', 'defaultdict')
class _DefaultDict:
    """Stands for `defaultdict`. torch fills items into plain dicts only."""

    def __new__(cls, *_: Any) -> Any:
        return {}


@_known_as('yacs.config', 'CfgNode')
class _CfgNode:
    """Stands for the dict with attributes in which the official code keeps its options."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # torch fills items and attributes into this type


@_known_as('numpy', 'dtype')
class _Dtype:
    """Stands for `numpy.dtype`, and holds the real one in `dtype`."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise UnpicklingError(f'Unsupported dtype {kind!r} of numpy')
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields = tuple(state)[:5]
        if order not in ('<', '>', '=', '|') or (subdtype, names, fields) != (None, None, None):
            raise UnpicklingError(f'Unsupported state {state!r} of a dtype of numpy')
        self.dtype = self.dtype.newbyteorder(order)


@_known_as('numpy', 'ndarray')
class _Array(np.ndarray):
    """An array that is filled from a file once, and pickled like any other array."""

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
    return np.ndarray.__new__(_Array, (0,), 'b')  # as numpy calls it


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise UnpicklingError('Unsupported number of numpy')
    if len(raw) != dtype.dtype.itemsize:
        raise UnpicklingError(f'Unsupported number of numpy: {len(raw)} bytes for {dtype.dtype}')
    return np.frombuffer(raw, dtype.dtype)[0]
