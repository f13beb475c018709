"""Reading checkpoint files without running what is in them.

A `.pth` file is a pickle, and a pickle is a program. torch's `weights_only=True` runs it with a short list of harmless
calls. What training checkpoints of mmengine need beyond that is on the list below, each entry without a way to
anything else.
"""

from __future__ import annotations

import contextlib
import json
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from swinv2_mm.checkpoints.errors import CheckpointError, UntrustedCheckpointError

_trusting: ContextVar[bool] = ContextVar('trusting', default=False)
_SAFETENSORS = '.safetensors'


@contextlib.contextmanager
def trust_checkpoints(trust: bool = True) -> Iterator[None]:
    """Within this context, checkpoints may run code: what `--trust-checkpoint` means.

    Args:
        trust: False leaves everything as it was.
    """
    token = _trusting.set(trust or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def read_checkpoint_file(
    path: str | Path, map_location: Any = 'cpu', mmap: bool = False, trust: bool | None = None
) -> Any:
    """Reads a `.pth` or `.safetensors` file; nothing that it brings along is executed.

    Args:
        path: The file.
        map_location: Where tensors go, as for `torch.load`.
        mmap: Leaves tensors in the file until they are read. They must not outlive it: whoever keeps them would
            see the file being overwritten.
        trust: Runs the code in the file, if it needs that; default: inside `trust_checkpoints`.

    Returns:
        The content. A `.safetensors` file becomes `dict(state_dict=..., meta=...)`.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedCheckpointError: The file would have to be trusted.
        CheckpointError: It is no checkpoint, or a damaged one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'the checkpoint {path} does not exist')
    if path.suffix == _SAFETENSORS:
        return _read_safetensors(path, map_location)
    if trust is None:
        trust = _trusting.get()
    options: dict[str, Any] = {'map_location': map_location, 'weights_only': not trust}
    # Only the zip format of today can be mapped.
    if mmap and str(map_location) == 'cpu' and zipfile.is_zipfile(path):
        options['mmap'] = True
    try:
        with _known_globals():
            return torch.load(path, **options)
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise _explained(path, error, trust) from error


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    if not (map_location is None or isinstance(map_location, (str, torch.device))):
        raise CheckpointError(f'map_location={map_location!r}: expected a device for {path}')
    try:
        with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
            meta = file.metadata() or {}
    except Exception as error:  # its own exception class, and Rust panics
        raise CheckpointError(_damaged(path, error)) from error
    ours = _parsed(meta.get('meta', ''))
    return {'state_dict': state, 'meta': ours if isinstance(ours, dict) else dict(meta)}


def _parsed(text: str) -> Any:
    """Reads json where it is json: the metadata of a safetensors file are strings."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _explained(path: Path, error: Exception, trusted: bool) -> CheckpointError:
    if isinstance(error, UnpicklingError) and not trusted:
        start = path.read_bytes()[:2] if not zipfile.is_zipfile(path) else b'PK'
        if start in (b'PK', b'\x80\x02', b'\x80\x04'):
            return UntrustedCheckpointError(
                f'{path} holds more than weights and was not loaded, since loading it runs code from the file '
                f'({_reason(error)}). If you know and trust who made it: --trust-checkpoint.'
            )
    return CheckpointError(_damaged(path, error))


def _reason(error: Exception) -> str:
    """Returns the one line of torch's long message that names the culprit."""
    for line in str(error).splitlines():
        if 'GLOBAL' in line or 'Unsupported' in line or 'reduce' in line or 'Can only' in line:
            text = line.strip().removeprefix('WeightsUnpickler error: ')
            return text.split(' was not an allowed')[0].split('. Please')[0]
    return str(error).splitlines()[0][:200]


def _damaged(path: Path, error: Exception) -> str:
    with path.open('rb') as file:
        start = file.read(64)
    size = path.stat().st_size
    if not size:
        return f'{path} is empty: copy or download it again'
    if start.startswith(b'version https://git-lfs'):
        return f'{path} is a pointer of git-lfs, not the file itself: run `git lfs pull`'
    if start.lstrip()[:1] == b'<':
        return (
            f'{path} is a web page, not a checkpoint: the address it was downloaded from is wrong'
        )
    if start.startswith(b'PK') and not zipfile.is_zipfile(path):
        return f'{path} is cut off after {size} bytes: copy or download it again'
    if path.suffix != _SAFETENSORS and _is_text(start):
        return f'{path} is a text file, not a checkpoint: it begins with {start[:32].decode()!r}'
    reason = ' '.join(str(error).split()) or type(error).__name__
    return f'{path} ({size} bytes) is no checkpoint, or a damaged one: {reason[:200]}'


def _is_text(start: bytes) -> bool:
    try:
        return start.decode('utf-8').isprintable() or b'\n' in start
    except UnicodeDecodeError:
        return False


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    """Adds our list to torch's for a moment; `torch.serialization.safe_globals` is younger than our oldest torch."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _globals() -> list[Any]:
    from mmengine.logging.history_buffer import HistoryBuffer

    core = np.array(0).__reduce__()[0].__module__.rpartition('.')[0]  # numpy.core or numpy._core
    multiarray = __import__(f'{core}.multiarray', fromlist=['_'])
    known: list[Any] = [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        # Containers without behaviour, which the scripts of timm and of the official code save their options in.
        _inert('argparse', 'Namespace'),
        _inert('yacs.config', 'CfgNode'),
        _inert('pathlib', 'PosixPath'),
        _inert('pathlib', 'WindowsPath'),
    ]
    known += {type(np.dtype(kind)) for kind in '?bhilqBHILQefdU'}
    # Files know these by the module path of the numpy that wrote them.
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        known.append(_renamed(multiarray._reconstruct, module, '_reconstruct'))
        known.append(_renamed(multiarray.scalar, module, 'scalar'))

    # The training log refers to its own methods by `getattr`. The real one would open a way to everything:
    # the builtin function `getattr` knows its module, and that knows `exec`.
    def getattr_of_history(owner: Any, name: str) -> Any:
        if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
            return vars(HistoryBuffer)[name]
        raise UnpicklingError(f'GLOBAL getattr asks for {name!r} of {owner!r}')

    known.append(_renamed(getattr_of_history, 'builtins', 'getattr'))
    return known


def _renamed(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    """Wraps `function` such that torch finds it under another name."""

    def wrapper(*args: Any) -> Any:
        return function(*args)

    wrapper.__module__, wrapper.__qualname__, wrapper.__name__ = module, name, name
    return wrapper


def _inert(module: str, name: str) -> type:
    """Returns a stand-in for a class: makes a dict that takes attributes and ignores arguments."""

    def new(cls: type, *_: Any) -> Any:
        return OrderedDict()  # the one type that torch fills items and attributes into

    def build(namespace: dict[str, Any]) -> None:
        namespace.update(__new__=new, __module__=module)

    return types.new_class(name, (), exec_body=build)
