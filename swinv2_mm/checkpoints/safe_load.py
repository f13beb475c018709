"""Read checkpoint files without running code from them.

A `.pth` file is a pickle, and a pickle can call any function. torch's `weights_only=True` allows a short list of
harmless ones, to which `allowed` adds what training checkpoints hold beside tensors.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from swinv2_mm.checkpoints.allowed import allowed_globals
from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
)

_trusting: ContextVar[bool] = ContextVar('trusting', default=False)
_list_of_torch = threading.RLock()
_SAFETENSORS = '.safetensors'
_AGAIN = 'remove it, and copy or download it again'  # a file in the cache is not fetched twice


@contextlib.contextmanager
def trust_checkpoints(trust: bool = True) -> Iterator[None]:
    """Allow checkpoints to run code inside this context, as `--trust-checkpoint` does; nothing if `trust` is False."""
    token = _trusting.set(trust or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def read_checkpoint_file(path: str | Path, map_location: Any = 'cpu', mmap: bool = False) -> Any:
    """Read a `.pth` or `.safetensors` file without running code from it, unless inside `trust_checkpoints`.

    Args:
        path: The file.
        map_location: The device for tensors, see `torch.load`.
        mmap: Whether to leave tensors in the file until they are read. They must not outlive the file.

    Returns:
        The content. A `.safetensors` file becomes `dict(state_dict=..., meta=...)`.

    Raises:
        CheckpointUnavailableError: If the file does not exist.
        UntrustedCheckpointError: If the file would run code.
        CheckpointError: If the file is damaged or not a checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointUnavailableError(f'the checkpoint {path} does not exist')
    if path.suffix == _SAFETENSORS:
        return _read_safetensors(path, map_location)
    trust = _trusting.get()
    options: dict[str, Any] = {'map_location': map_location, 'weights_only': not trust}
    # torch maps files in the zip format only.
    if mmap and str(map_location) == 'cpu' and zipfile.is_zipfile(path):
        options['mmap'] = True
    try:
        with _allowed_globals():
            return torch.load(path, **options)
    except Exception as error:  # torch raises many kinds for damaged files
        # A zip file that is cut off is none; a pickle begins with its protocol.
        is_pickle = zipfile.is_zipfile(path) or _beginning(path)[:1] == b'\x80'
        if isinstance(error, UnpicklingError) and not trust and is_pickle:
            raise UntrustedCheckpointError(
                f'{path} holds more than weights and was not loaded, since loading it runs code from the file '
                f'({_reason(error)}). If you know and trust who made it: --trust-checkpoint, or in Python '
                '`with swinv2_mm.checkpoints.trust_checkpoints():`.'
            ) from error
        raise CheckpointError(_damaged(path, error)) from error


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    if not (map_location is None or isinstance(map_location, (str, torch.device))):
        raise CheckpointError(f'map_location={map_location!r}: expected a device for {path}')
    try:
        with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            meta = file.metadata() or {}
    except Exception as error:  # its own exception class, and Rust panics
        raise CheckpointError(_damaged(path, error)) from error
    try:
        ours = json.loads(meta.get('meta', ''))  # values are strings
    except ValueError:
        ours = None
    return {'state_dict': state, 'meta': ours if isinstance(ours, dict) else dict(meta)}


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that names what is not allowed."""
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
    return f'{path} ({size} bytes) is damaged or not a checkpoint: {reason[:200]}'


def is_cut_off(path: Path) -> bool:
    """Return whether a file is the beginning of a zip file, which has its table of contents at the end."""
    return _beginning(path)[:2] == b'PK' and not zipfile.is_zipfile(path)


def _beginning(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(64)


def _text(start: bytes) -> str:
    """Return the beginning of a text, whose last letter may be cut, and nothing for other files."""
    try:
        text = codecs.getincrementaldecoder('utf-8')().decode(start)
    except UnicodeDecodeError:
        return ''
    return text if text.isprintable() or '\n' in text else ''


@contextlib.contextmanager
def _allowed_globals() -> Iterator[None]:
    """Make torch's list of allowed globals ours inside this context.

    Entries of others stay, but not under a name of ours: `getattr` is often added for the log of mmengine.
    `torch.serialization.safe_globals` cannot do this, and does not exist in torch 2.4.
    """
    known = allowed_globals()
    names = {_full_name(thing) for thing in known}
    with _list_of_torch:  # one list for the whole process
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
    """Return the name under which torch finds an entry of its list, which may be a pair of thing and name."""
    return str(thing[1]) if isinstance(thing, tuple) else f'{thing.__module__}.{thing.__qualname__}'
