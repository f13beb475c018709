"""The functions and classes that the pickle of a checkpoint may name.

torch calls them with arguments from the file, so each entry only makes or fills a container. Where the real one does
more, a stand-in takes its name while a file is read. Those of numpy read numbers and texts only: the real ones accept
object addresses, fields and flags from the file, which is enough to crash the process or to run code.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
from collections import OrderedDict
from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging.history_buffer import HistoryBuffer
from torch.torch_version import TorchVersion

_KIND = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}')
_CONTAINERS = (
    *(bool, int, float, str, list, tuple, dict, frozenset, slice),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
    *(argparse.Namespace, types.SimpleNamespace, ConfigDict, TorchVersion),
)


def _getattr(owner: Any, name: str) -> str:
    """Stands for `getattr`, by which `HistoryBuffer` refers to its own methods. The real one leads to `exec`."""
    if owner is _HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return name
    raise UnpicklingError(f'GLOBAL getattr asks for {name!r} of {owner!r}')


def _bytes(*given: Any) -> bytes:
    """Stands for `bytes`, which is how empty ones are written; `bytes(10**12)` would fill the memory."""
    if given:
        raise UnpicklingError('Unsupported call of bytes')
    return b''


def _range(*given: Any) -> range:
    """Stands for `range`: a list of a huge one would fill the memory."""
    found = range(*given)
    if len(found) > 10**6:
        raise UnpicklingError(f'Unsupported range of {len(found)} numbers')
    return found


class _HistoryBuffer(HistoryBuffer):
    """Stands for `HistoryBuffer` while it is filled; the real one takes methods from the file."""

    def __init__(self, *_: Any) -> None:
        raise UnpicklingError('Unsupported call of HistoryBuffer')

    def __setstate__(self, state: Any) -> None:
        values, counts = (state[f'_{kind}_history'] for kind in ('log', 'count'))
        if not all(
            isinstance(array, _Array) and array.dtype.kind in 'iuf' for array in (values, counts)
        ):
            raise UnpicklingError('Unsupported state of HistoryBuffer')
        super().__init__(values, counts, int(state['max_length']))
        object.__setattr__(self, '__class__', HistoryBuffer)


class _Config(Config):
    """Stands for `Config` while it is filled; calling the real one with a file name would read that file."""

    def __init__(self, *_: Any) -> None:
        raise UnpicklingError('Unsupported call of mmengine.Config')

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        object.__setattr__(self, '__class__', Config)


class _CfgNode:
    """Stands for the dict with attributes in which the official code keeps its options."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # torch fills items and attributes into this type


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


class _Array(np.ndarray):
    """An array that is filled from a file once, and pickled like any other array."""

    _is_read = False

    def __new__(cls, *_: Any) -> _Array:
        raise UnpicklingError('Unsupported call of numpy.ndarray')

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        if isinstance(raw, str):  # from Python 2
            raw = raw.encode('latin1')
        sound = isinstance(dtype, _Dtype) and isinstance(raw, bytes) and isinstance(shape, tuple)
        # A second time would free numbers that a tensor may have been made of.
        if self._is_read or not sound or any(type(size) is not int or size < 0 for size in shape):
            raise UnpicklingError('Unsupported state of numpy.ndarray')
        self._is_read = True
        super().__setstate__((1, shape, dtype.dtype, bool(is_fortran), raw))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _scalar(dtype: Any, raw: Any) -> Any:
    sound = isinstance(dtype, _Dtype) and isinstance(raw, bytes)
    if not sound or len(raw) != dtype.dtype.itemsize:
        raise UnpicklingError('Unsupported number of numpy')
    return np.frombuffer(raw, dtype.dtype)[0]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Stands for the function of numpy 2 that makes an array of pickle protocol 5."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)):
        raise UnpicklingError('Unsupported array of numpy')
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order=order)


def numpy_globals() -> dict[str, Any]:
    """Return what the pickle of a numpy array may name, by full name."""
    named: dict[str, Any] = {
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _Array,
        'numpy._core.numeric._frombuffer': lambda *given: _from_buffer(*given),
    }
    for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # before and since numpy 2
        # Called as by numpy itself.
        named[f'{core}._reconstruct'] = lambda *_: np.ndarray.__new__(_Array, (0,), 'b')
        named[f'{core}.scalar'] = lambda dtype, raw: _scalar(dtype, raw)
    return named


def allowed_globals() -> list[Any]:
    """Return the functions and classes that a checkpoint may name, for `torch.serialization.add_safe_globals`."""
    named: dict[str, Any] = {
        'builtins.getattr': _getattr,
        'builtins.bytes': _bytes,
        'builtins.range': _range,
        'mmengine.config.config.Config': _Config,
        'mmengine.logging.history_buffer.HistoryBuffer': _HistoryBuffer,
        'collections.defaultdict': lambda *_: {},  # torch fills items into plain dicts only
        'yacs.config.CfgNode': _CfgNode,
        **numpy_globals(),
    }
    for module in ('pathlib', 'pathlib._local'):  # Python 3.13
        named[f'{module}.PosixPath'] = lambda *parts: pathlib.PurePosixPath(*parts)
        named[f'{module}.WindowsPath'] = lambda *parts: pathlib.PureWindowsPath(*parts)
    for full_name, thing in named.items():  # torch finds them by these attributes
        thing.__module__, _, thing.__qualname__ = full_name.rpartition('.')
        thing.__name__ = thing.__qualname__
    return [*_CONTAINERS, *named.values()]
