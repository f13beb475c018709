"""From the address of a checkpoint to a file on this machine.

Addresses: a path, `https://...`, `timm://NAME`, `hf://OWNER/NAME[/FILE][@REVISION]`, `torchvision://NAME`, `s3://...`,
and the `openmmlab://NAME` and `mmcls://NAME` of mmengine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import huggingface_hub
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend

from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
    trusting,
)
from swinv2_mm.checkpoints.safe_load import is_cut_off, read_checkpoint_file

_HF_FILES = ('model.safetensors', 'pytorch_model.bin')
# As in torch.hub, but eight digits or more, and not a date.
_HASH = re.compile(r'-(?!20\d{6}\.)([a-f0-9]{8,64})\.')
_HUB_URL = re.compile(
    r'https://huggingface\.co/([^/]+)/([^/]+)/(?:resolve|blob)/([^/]+)/([^?@]+)(?:\?.*)?'
)


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine."""

    path: Path
    name: str  # of the model, or of the file
    config: Mapping[str, Any] | None = None  # content of the `config.json` beside it
    is_download: bool = False  # removed if it cannot be read

    def read(self, map_location: Any = 'cpu', mmap: bool = False) -> Any:
        """Return the content, see `read_checkpoint_file`."""
        try:
            return read_checkpoint_file(self.path, map_location, mmap)
        except CheckpointError as error:
            if self.is_download and not isinstance(error, UntrustedCheckpointError):
                self.path.unlink(missing_ok=True)
            raise


def fetch_checkpoint(address: str | Path) -> LocalCheckpoint:
    """Find a checkpoint, and download it if it is not a file. The first of several processes downloads.

    Raises:
        CheckpointUnavailableError: If the file does not exist or cannot be downloaded.
        CheckpointError: If the address is malformed.
    """
    text = str(address)
    scheme, separator, rest = text.partition('://')
    if not separator or os.path.isfile(text):
        return _local(text)
    if scheme == 'file':
        return _local(url2pathname(urlparse(text).path))
    if scheme.rpartition(':')[2] in ('s3', 'petrel'):
        return _from_store(text)
    if scheme not in _FETCHERS:
        known = ', '.join(f'{name}://' for name in (*_FETCHERS, 's3'))
        raise CheckpointError(f'{text}: unknown kind of address; expected a file or one of {known}')
    # One process downloads while the others wait; then all find the file.
    if get_rank() != 0:
        barrier()
        return _FETCHERS[scheme](rest, text)
    try:
        return _FETCHERS[scheme](rest, text)
    finally:
        barrier()


def _local(text: str) -> LocalCheckpoint:
    path = Path(text).expanduser()
    # A folder is a model of transformers or timm.
    files = [path / name for name in _HF_FILES] if path.is_dir() else [path]
    found = next(filter(Path.is_file, files), None)
    if found is None:
        named = ' or '.join(map(str, files))
        raise CheckpointUnavailableError(f'the checkpoint {named} does not exist')
    config = _read_json(found.parent / 'config.json') if found.name in _HF_FILES else None
    return LocalCheckpoint(found, found.name, config)


def _read_json(path: Path) -> Mapping[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(content := json.loads(path.read_text(encoding='utf-8')), dict):
            return content
    return None


def _from_store(address: str) -> LocalCheckpoint:
    """Read from an object store through mmengine's backend; the copy exists as long as this process."""
    name = os.path.basename(address)
    target = Path(tempfile.mkdtemp(dir=_temporary_folder().name)) / name
    try:
        # The backend that mmengine's own loader takes.
        backend = get_file_backend(address, backend_args={'backend': 'petrel'})
        target.write_bytes(backend.get(address))
    except Exception as error:
        raise CheckpointUnavailableError(f'cannot read {address} ({_short(error)})') from error
    return LocalCheckpoint(target, name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix='swinv2_mm')


def _from_web(rest: str, address: str) -> LocalCheckpoint:
    if on_hub := _HUB_URL.fullmatch(address):
        # torch's cache would take every `model.safetensors` for the same file.
        return _from_hub(on_hub.expand(r'\1/\2/\4@\3'), address)
    return _download(address, address)


def cached_file(url: str) -> Path:
    """Return where a download is kept.

    A name with a hash such as `model-1a2b3c4d.pth` stands for one file, and is in the folder of `torch.hub`, which
    mmengine uses as well. Other files are in a folder per URL.
    """
    folder, name = Path(torch.hub.get_dir()) / 'checkpoints', os.path.basename(urlparse(url).path)
    if not _HASH.search(name):
        folder = folder / 'swinv2_mm' / hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder / name


def _download(url: str, address: str) -> LocalCheckpoint:
    target = cached_file(url)
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{address} names no file')
    promised = _HASH.search(name)
    prefix = promised[1] if promised and not trusting.get() else None
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Writes to a temporary name first: a broken download leaves nothing behind.
            torch.hub.download_url_to_file(url, str(target), prefix, os.isatty(2))
            if is_cut_off(target):  # torch takes a connection that ends for the end of the file
                size = target.stat().st_size
                target.unlink()
                raise EOFError(f'the connection broke off after {size} bytes')
        except Exception as error:
            raise CheckpointUnavailableError(
                f'cannot download {name} ({_short(error)}). Get it from {url} on a machine with network and put it at '
                f'{target}, or name your copy instead of {address}.'
            ) from error
    elif prefix and not file_hash(target).startswith(prefix):
        raise CheckpointError(
            f'{target}: its SHA-256 does not begin with {prefix}, as its name says: remove it to download it again. '
            'To use it as it is: --trust-checkpoint.'
        )
    return LocalCheckpoint(target, name, is_download=True)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(rest: str, address: str) -> LocalCheckpoint:
    path, _, revision = rest.partition('@')
    owner, model, file = (*path.split('/', 2), '', '')[:3]
    if not owner or not model:
        raise CheckpointError(
            f'{address}: expected hf://OWNER/NAME, optionally with /FILE and @REVISION'
        )
    get = functools.partial(
        huggingface_hub.hf_hub_download, f'{owner}/{model}', revision=revision or None
    )
    files = (file,) if file else _HF_FILES
    failure: Exception = CheckpointError(address)
    for name in files:
        try:
            file = get(name)
        except Exception as error:
            failure = error
            continue
        config = None
        with contextlib.suppress(Exception):  # there may be none; the weights may tell the window
            config = _read_json(Path(get('config.json')))
        return LocalCheckpoint(Path(file), model, config)
    chosen = f' --revision {revision}' if revision else ''
    raise CheckpointUnavailableError(
        f'cannot get {" or ".join(files)} of {owner}/{model} from the Hugging Face hub ({_short(failure)}). Run '
        f'`hf download {owner}/{model}{chosen}` on a machine with network and copy its cache to '
        f'{huggingface_hub.constants.HF_HUB_CACHE}; or get the file from https://huggingface.co/{owner}/{model}/resolve/'
        f'{revision or "main"}/{files[0]} and name your copy instead of {address}.'
    ) from failure


def _from_timm(name: str, address: str) -> LocalCheckpoint:
    import timm

    cfg = timm.models.get_pretrained_cfg(name) if name else None
    if cfg is None:
        close = ', '.join(timm.list_models(f'*{name.split("_")[0]}*', pretrained=True)[:12])
        raise CheckpointError(
            f'timm knows no weights called {name!r}; similar ones: {close or "none"}'
        )
    if cfg.hf_hub_id:
        found = _from_hub(f'{cfg.hf_hub_id}/{cfg.hf_hub_filename or ""}', address)
        return replace(found, name=name)
    if cfg.url:
        return replace(_download(str(cfg.url), address), name=name)
    raise CheckpointError(f'timm has no weights for {name}')


def _from_openmmlab(name: str, address: str) -> LocalCheckpoint:
    """Look the name up in the tables of mmengine."""
    from mmengine.runner import checkpoint as tables

    scheme = address.partition('://')[0]
    lists = {
        'torchvision': tables.get_torchvision_models,
        'modelzoo': tables.get_torchvision_models,
        'mmcls': tables.get_mmcls_models,
    }
    urls = lists.get(scheme, tables.get_external_models)()
    if scheme not in lists:
        name = tables.get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise CheckpointError(f'{address}: {scheme}:// knows no {name!r}')
    if not urls[name].startswith(('http://', 'https://')):
        return _local(os.path.join(tables._get_mmengine_home(), urls[name]))
    return _download(urls[name], address)


_FETCHERS: dict[str, Callable[[str, str], LocalCheckpoint]] = {
    'https': _from_web,
    'http': _from_web,
    'timm': _from_timm,
    'hf': _from_hub,
    'hf-hub': _from_hub,
    **dict.fromkeys(
        ('torchvision', 'modelzoo', 'openmmlab', 'open-mmlab', 'mmcls'), _from_openmmlab
    ),
}


def _short(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:160]}' if text else type(error).__name__
