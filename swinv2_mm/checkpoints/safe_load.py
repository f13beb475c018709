"""Read checkpoint files without running code from them: torch's `weights_only=True`, and the types of `allowed`."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.logging import print_log
from torch.torch_version import TorchVersion

from swinv2_mm.checkpoints.allowed import allowed_globals
from swinv2_mm.checkpoints.detect import require_stored
from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
    trusting,
)

_list_of_torch = threading.RLock()
_SAFETENSORS = '.safetensors'
_AGAIN = 'remove it, and copy or download it again'
_HOLES = {'2.6': 'CVE-2025-32434', '2.10': 'CVE-2026-24747'}
"""Ways around `weights_only=True`, by the version of torch that closed them."""


def read_checkpoint_file(path: str | Path, map_location: Any = 'cpu', mmap: bool = False) -> Any:
    """Read a `.pth` or `.safetensors` file without running code from it, unless inside `trust_checkpoints`.

    With `mmap`, tensors stay in the file until they are read, and must not outlive it. A `.safetensors` file becomes
    `dict(state_dict=..., meta=...)`.

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
    trust = trusting.get()
    entries = _zip_entries(path)
    if any(entry.filename.endswith('/constants.pkl') for entry in entries):
        raise CheckpointError(
            f'{path} is a TorchScript program, not a checkpoint: save its state_dict()'
        )
    if not trust:
        _warn_of_holes(torch.__version__)
        if _is_tar(path):  # torch before 2.6 runs code from these
            raise _untrusted(path, 'a tar file of torch before 0.4')
    # torch maps only zip files, and does not see that their content is compressed.
    mmap = mmap and str(map_location) == 'cpu' and bool(entries)
    mmap = mmap and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    try:
        with _allowed_globals():
            content = torch.load(path, map_location, weights_only=not trust, mmap=mmap)
    except Exception as error:  # torch raises many kinds for damaged files
        is_pickle = entries or _beginning(path)[:1] == b'\x80'  # begins with its protocol
        if isinstance(error, UnpicklingError) and not trust and is_pickle:
            # torch makes a long message of the one that names what is not allowed.
            reason = ' '.join(str(error.__context__ or error).split()).split('. Please')[0][:200]
            raise _untrusted(path, reason) from error
        raise CheckpointError(_damaged(path, error)) from error
    if str(map_location) != 'meta':
        require_stored(content, str(path))
    return content


@functools.cache
def _warn_of_holes(version: str) -> None:
    """Warn once if torch has known ways to run code from a file that is read with `weights_only=True`."""
    known = [name for closed, name in _HOLES.items() if TorchVersion(version) < closed]
    if known:
        print_log(
            f'torch {version} can run code from a .pth file even with weights_only=True ({", ".join(known)}): '
            f'update to torch {list(_HOLES)[-1]}, or load .safetensors files only.',
            logger='current',
            level=logging.WARNING,
        )


def _zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return the table of contents of a zip file; empty for other files and for one that is cut off."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        return archive.infolist()
    return []


def _is_tar(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return tarfile.is_tarfile(path)
    return False


def _untrusted(path: Path, reason: str) -> UntrustedCheckpointError:
    return UntrustedCheckpointError(
        f'{path} holds more than weights and was not loaded, since loading it runs code from the file '
        f'({reason}). If you know and trust who made it: --trust-checkpoint, or in Python '
        '`with swinv2_mm.checkpoints.trust_checkpoints():`.'
    )


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    if not (map_location is None or isinstance(map_location, (str, torch.device))):
        raise CheckpointError(f'map_location={map_location!r}: expected a device for {path}')
    try:
        with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
            meta = dict(file.metadata() or {})
    except Exception as error:  # its own exception class, and Rust panics
        raise CheckpointError(_damaged(path, error)) from error
    with contextlib.suppress(KeyError, ValueError):  # ours is json; others have texts only
        if isinstance(ours := json.loads(meta['meta']), dict):
            meta = ours
    return {'state_dict': state, 'meta': meta}


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
        return f'{path} is a web page, not a checkpoint: its address was wrong'
    if is_cut_off(path):
        return f'{path} is cut off after {size} bytes: {_AGAIN}'
    reason = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, (IndexError, KeyError)):  # of the unpickler
        reason = 'its pickle has an unexpected end or content'
    if 'resize storage' in reason:
        reason = 'a tensor claims more elements than the file holds'
    if reason.startswith('Weights only load failed'):  # goes on with advice to load it unsafely
        reason = 'it has no state of tensors that torch reads'
    return f'{path} ({size} bytes, {start[:16]!r}) is damaged or not a checkpoint: {reason[:200]}'


def is_cut_off(path: Path) -> bool:
    """Return whether a file is the beginning of a zip file, which has its table of contents at the end."""
    return _beginning(path)[:2] == b'PK' and not zipfile.is_zipfile(path)


def _beginning(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(64)


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
