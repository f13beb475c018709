"""Reading checkpoint files without running what is in them.

A `.pth` file is a pickle, and a pickle is a program. torch's `weights_only=True` runs it with a short list of harmless
calls. What training checkpoints of mmengine need beyond that is on the list below, each entry without a way to
anything else.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import threading
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.logging.history_buffer import HistoryBuffer

from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
)
from swinv2_mm.checkpoints.numpy_pickles import known_as, numpy_globals

_trusting: ContextVar[bool] = ContextVar('trusting', default=False)
_list_of_torch = threading.RLock()
_SAFETENSORS = '.safetensors'
_AGAIN = 'remove it, and copy or download it again'  # a file in the cache is not fetched twice


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
        CheckpointUnavailableError: There is no such file.
        UntrustedCheckpointError: The file would have to be trusted.
        CheckpointError: It is no checkpoint, or a damaged one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointUnavailableError(f'the checkpoint {path} does not exist')
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
    # A zip file that is cut off is none; a pickle begins with its protocol.
    if (
        isinstance(error, UnpicklingError)
        and not trusted
        and (zipfile.is_zipfile(path) or _beginning(path)[:1] == b'\x80')
    ):
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
    try:
        start, size = _beginning(path), path.stat().st_size
    except OSError as unreadable:
        return f'{path} cannot be read: {unreadable.strerror}'
    if not size:
        return f'{path} is empty: {_AGAIN}'
    if start.startswith(b'version https://git-lfs'):
        return f'{path} is a pointer of git-lfs, not the file itself: run `git lfs pull`'
    if start.lstrip()[:1] == b'<':
        return (
            f'{path} is a web page, not a checkpoint: the address it was downloaded from is wrong'
        )
    if is_cut_off(path):
        return f'{path} is cut off after {size} bytes: {_AGAIN}'
    if path.suffix != _SAFETENSORS and (text := _text(start)):
        return f'{path} is a text file, not a checkpoint: it begins with {text[:32]!r}'
    reason = ' '.join(str(error).split()) or type(error).__name__
    return f'{path} ({size} bytes) is no checkpoint, or a damaged one: {reason[:200]}'


def is_cut_off(path: Path) -> bool:
    """Says whether a file is the beginning of a zip file, which has its table of contents at the end."""
    return _beginning(path)[:2] == b'PK' and not zipfile.is_zipfile(path)


def _beginning(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(64)


def _text(start: bytes) -> str:
    """Returns the beginning of a text, and nothing for other files; a letter at its end may be cut."""
    try:
        text = codecs.getincrementaldecoder('utf-8')().decode(start)
    except UnicodeDecodeError:
        return ''
    return text if text.isprintable() or '\n' in text else ''


@contextlib.contextmanager
def _known_globals() -> Iterator[None]:
    """Makes torch's list ours for a moment.

    What others have added to it stays on it, but under no name of ours: `getattr` is often added, since mmengine's log
    asks for it. `torch.serialization.safe_globals` could not do this, and is younger than our oldest torch.
    """
    known = _globals()
    names = {_full_name(thing) for thing in known}
    with _list_of_torch:  # it is one for the whole process
        before = torch.serialization.get_safe_globals()
        others = [thing for thing in before if _full_name(thing) not in names]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*others, *known])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _full_name(thing: Any) -> str:
    """Returns the name under which torch finds an entry of its list: one of them may come with a name of its own."""
    return str(thing[1]) if isinstance(thing, tuple) else f'{thing.__module__}.{thing.__qualname__}'


@known_as('builtins', 'getattr')
def _getattr_of_history(owner: Any, name: str) -> Any:
    """Stands for `getattr`, by which the training log refers to its own methods.

    The real one would open a way to everything: the builtin function `getattr` knows its module, and that knows `exec`.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return vars(HistoryBuffer)[name]
    raise UnpicklingError(f'GLOBAL getattr asks for {name!r} of {owner!r}')


def _globals() -> list[Any]:
    return [
        *numpy_globals(),
        HistoryBuffer,
        _getattr_of_history,
        # Containers without behaviour, which the scripts of timm and of the official code save their options in.
        _inert('argparse', 'Namespace'),
        _inert('yacs.config', 'CfgNode'),
        _inert('pathlib', 'PosixPath'),
        _inert('pathlib', 'WindowsPath'),
    ]


def _inert(module: str, name: str) -> type:
    """Returns a stand-in for a class: makes a dict that takes attributes and ignores arguments."""

    def new(cls: type, *_: Any) -> Any:
        return OrderedDict()  # the one type that torch fills items and attributes into

    def build(namespace: dict[str, Any]) -> None:
        namespace.update(__new__=new, __module__=module)

    return types.new_class(name, (), exec_body=build)
