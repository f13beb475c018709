"""From the address of a checkpoint to a file on this machine.

Addresses: a path, `https://...`, `timm://NAME`, `hf://OWNER/NAME[/FILE][@REVISION]`, `torchvision://NAME`, `s3://...`,
and the `openmmlab://NAME` and `mmcls://NAME` of mmengine.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from mmengine.dist import barrier, get_rank, is_distributed
from mmengine.fileio import get_file_backend

from swinv2_mm.checkpoints.errors import CheckpointError, CheckpointUnavailableError
from swinv2_mm.checkpoints.safe_load import is_cut_off

_HF_FILES = ('model.safetensors', 'pytorch_model.bin')
_HUB_URL = re.compile(
    r'https://huggingface\.co/([^/]+)/([^/]+)/(?:resolve|blob)/([^/]+)/([^?@]+)(?:\?.*)?'
)
T = TypeVar('T')


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine.

    Attributes:
        path: The file.
        name: The name of the model, or of the file.
        config: Content of the `config.json` beside it.
    """

    path: Path
    name: str
    config: Mapping[str, Any] | None = None


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
    return _first_rank_first(lambda: _FETCHERS[scheme](rest, text))


def _local(text: str) -> LocalCheckpoint:
    path = Path(text).expanduser()
    if path.is_dir():  # a model folder of transformers or timm
        inside = [path / name for name in _HF_FILES if (path / name).is_file()]
        if not inside:
            raise CheckpointUnavailableError(
                f'the folder {path} holds none of {", ".join(_HF_FILES)}'
            )
        path = inside[0]
    if not path.is_file():
        raise CheckpointUnavailableError(f'the checkpoint {path} does not exist')
    config = _read_json(path.parent / 'config.json') if path.name in _HF_FILES else None
    return LocalCheckpoint(path, path.name, config)


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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
    on_hub = _HUB_URL.fullmatch(address)
    if on_hub is None:
        return _download(address, address)
    # torch's cache would take every `model.safetensors` for the same file.
    owner, name, revision, file = on_hub.groups()
    return _from_hub(f'{owner}/{name}/{file}@{revision}', address)


def _download(url: str, address: str) -> LocalCheckpoint:
    """Download to the folder of `torch.hub`, which mmengine uses as well."""
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{address} names no file')
    target = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Writes to a temporary name first: a broken download leaves nothing behind.
            torch.hub.download_url_to_file(url, str(target), progress=os.isatty(2))
            if is_cut_off(target):  # torch takes a connection that ends for the end of the file
                size = target.stat().st_size
                target.unlink()
                raise EOFError(f'the connection broke off after {size} bytes')
        except Exception as error:
            raise CheckpointUnavailableError(
                f'cannot download {name} ({_short(error)}). Get it from {url} on a machine with network and put it at '
                f'{target}, or name your copy instead of {address}.'
            ) from error
    return LocalCheckpoint(target, name)


def _from_hub(rest: str, address: str) -> LocalCheckpoint:
    rest, _, revision = rest.partition('@')
    owner, _, tail = rest.partition('/')
    model, _, file = tail.partition('/')
    if not owner or not model:
        raise CheckpointError(
            f'{address}: expected hf://OWNER/NAME, optionally with /FILE and @REVISION'
        )
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from timm.models import _hub  # its name and version are sent with the request

    repo = f'{owner}/{model}'
    at_revision = f'{repo}@{revision}' if revision else repo
    files = (file,) if file else _HF_FILES
    for name in files:
        try:
            path = Path(_hub.download_from_hf(at_revision, name))
            break
        except Exception as error:
            # Offline, `LocalEntryNotFoundError` does not say whether the file exists.
            if isinstance(error, EntryNotFoundError) and not isinstance(
                error, LocalEntryNotFoundError
            ):
                continue
            raise CheckpointUnavailableError(
                _hub_message(repo, name, revision, address, error)
            ) from error
    else:
        raise CheckpointUnavailableError(
            f'{address}: {repo} on the Hugging Face hub holds none of {", ".join(files)}'
        )
    try:
        config = _read_json(Path(_hub.download_from_hf(at_revision, 'config.json')))
    except Exception:  # there is none, or it cannot be downloaded: the weights may tell the window
        config = None
    return LocalCheckpoint(path, model, config)


def _hub_message(repo: str, file: str, revision: str, address: str, error: Exception) -> str:
    from huggingface_hub import constants

    chosen = f' --revision {revision}' if revision else ''
    return (
        f'cannot get {file} of {repo} from the Hugging Face hub ({_short(error)}). Run `hf download {repo}{chosen}` on '
        f'a machine with network and copy its cache to {constants.HF_HUB_CACHE}; or get the file from '
        f'https://huggingface.co/{repo}/resolve/{revision or "main"}/{file} and name your copy instead of {address}.'
    )


def _from_timm(name: str, address: str) -> LocalCheckpoint:
    import timm

    cfg = timm.models.get_pretrained_cfg(name) if name else None
    if cfg is None:
        close = ', '.join(timm.list_models(f'*{name.split("_")[0]}*', pretrained=True)[:12])
        raise CheckpointError(
            f'timm knows no weights called {name!r}; similar ones: {close or "none"}'
        )
    if cfg.hf_hub_id:
        file = f'/{cfg.hf_hub_filename}' if cfg.hf_hub_filename else ''
        return replace(_from_hub(f'{cfg.hf_hub_id}{file}', address), name=name)
    if cfg.url:
        return replace(_download(str(cfg.url), address), name=name)
    raise CheckpointError(f'timm has no weights for {name}')


def _from_openmmlab(name: str, address: str) -> LocalCheckpoint:
    """Look the name up in the tables of mmengine."""
    from mmengine.runner import checkpoint as tables

    scheme = address.partition('://')[0]
    if scheme in ('torchvision', 'modelzoo'):
        urls = tables.get_torchvision_models()
    elif scheme == 'mmcls':
        urls = tables.get_mmcls_models()
    else:
        urls = tables.get_external_models()
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


def _first_rank_first(fetch: Callable[[], T]) -> T:
    """Let one process download while the others wait, and then all find the file."""
    if not is_distributed():
        return fetch()
    found: T | None = None
    failure: Exception | None = None
    if get_rank() == 0:
        try:
            found = fetch()
        except Exception as error:
            failure = error  # the others wait at the barrier
    barrier()
    if failure is not None:
        raise failure
    return fetch() if found is None else found


def _short(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:160]}' if text else type(error).__name__
