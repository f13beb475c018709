"""From the address of a checkpoint to a file on this machine.

Addresses: a path, `https://...`, `timm://NAME`, `hf://OWNER/NAME[/FILE][@REVISION]`, `torchvision://NAME`, and the
`openmmlab://NAME` and `mmcls://NAME` of mmengine.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from swinv2_mm.checkpoints.errors import CheckpointError, CheckpointUnavailableError
from swinv2_mm.checkpoints.safe_load import is_cut_off

_HF_FILES = ('model.safetensors', 'pytorch_model.bin')
_HUB_URL = re.compile(
    r'https://huggingface\.co/([^/]+)/([^/]+)/(?:resolve|blob)/([^/]+)/([^?@]+)(?:\?.*)?'
)
T = TypeVar('T')


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint that is on this machine.

    Attributes:
        path: The file.
        address: What the user wrote.
        name: The name that its makers gave it.
        config: What a `config.json` that came with it says.
    """

    path: Path
    address: str
    name: str
    config: Mapping[str, Any] | None = None


def fetch_checkpoint(address: str | Path) -> LocalCheckpoint:
    """Finds a checkpoint, and downloads it if it is elsewhere. The first of several processes goes ahead.

    Raises:
        CheckpointUnavailableError: There is no such file, or it cannot be downloaded.
        CheckpointError: The address is malformed.
    """
    text = str(address)
    scheme, separator, rest = text.partition('://')
    if not separator or os.path.isfile(text):
        return _local(text)
    if on_hub := _HUB_URL.fullmatch(text):
        # By its address alone, every `model.safetensors` would be the same file in the cache of torch.
        owner, name, revision, file = on_hub.groups()
        return _first_rank_first(lambda: _from_hub(f'{owner}/{name}/{file}@{revision}', text))
    if scheme in ('http', 'https'):
        return _first_rank_first(lambda: _from_url(text, text))
    if scheme == 'file':
        return _local(url2pathname(urlparse(text).path))
    if scheme == 'timm':
        return _first_rank_first(lambda: _from_timm(rest, text))
    if scheme in ('hf', 'hf-hub'):
        return _first_rank_first(lambda: _from_hub(rest, text))
    if scheme in _TABLES:
        return _first_rank_first(lambda: _from_table(scheme, rest, text))
    known = ', '.join(f'{name}://' for name in ('https', 'timm', 'hf', *_TABLES))
    raise CheckpointError(f'{text}: unknown kind of address; expected a file or one of {known}')


def _local(text: str) -> LocalCheckpoint:
    path = Path(text).expanduser()
    if path.is_dir():  # a model folder as transformers and timm write it
        inside = [path / name for name in _HF_FILES if (path / name).is_file()]
        if not inside:
            raise CheckpointUnavailableError(
                f'the folder {path} holds none of {", ".join(_HF_FILES)}'
            )
        path = inside[0]
    if not path.is_file():
        raise CheckpointUnavailableError(f'the checkpoint {path} does not exist')
    beside = path.parent / 'config.json'
    config = _read_json(beside) if path.name in _HF_FILES and beside.is_file() else None
    return LocalCheckpoint(path, text, path.name, config)


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _from_url(url: str, address: str) -> LocalCheckpoint:
    """Downloads to where torch and mmengine keep such files, so that none of them does it twice."""
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise CheckpointError(f'{address} names no file')
    target = Path(torch.hub.get_dir()) / 'checkpoints' / name
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # It writes to a temporary name first: a broken download leaves nothing behind.
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
    return LocalCheckpoint(target, address, name)


def _from_hub(rest: str, address: str) -> LocalCheckpoint:
    rest, _, revision = rest.partition('@')
    owner, _, tail = rest.partition('/')
    model, _, file = tail.partition('/')
    if not owner or not model:
        raise CheckpointError(
            f'{address}: expected hf://OWNER/NAME, optionally with /FILE and @REVISION'
        )
    repo = f'{owner}/{model}'
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = None
    for name in (file,) if file else _HF_FILES:
        try:
            path = _hub_file(repo, name, revision)
            break
        except EntryNotFoundError as error:
            # The hub does not have it; or, offline, nobody knows.
            if isinstance(error, LocalEntryNotFoundError):
                raise CheckpointUnavailableError(
                    _hub_message(repo, name, revision, address, error)
                ) from error
        except Exception as error:
            raise CheckpointUnavailableError(
                _hub_message(repo, name, revision, address, error)
            ) from error
    if path is None:
        raise CheckpointUnavailableError(
            f'{address}: {repo} on the Hugging Face hub holds none of {", ".join((file,) if file else _HF_FILES)}'
        )
    try:
        config = _read_json(_hub_file(repo, 'config.json', revision))
    except (
        Exception
    ):  # a repository of weights alone, or offline: the weights may tell the window themselves
        config = None
    return LocalCheckpoint(path, address, model, config)


def _hub_file(repo: str, name: str, revision: str) -> Path:
    from timm.models import _hub  # timm's, for both: its name and version go with the request

    return Path(_hub.download_from_hf(f'{repo}@{revision}' if revision else repo, name))


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
        found = _from_hub(f'{cfg.hf_hub_id}{file}', address)
    elif cfg.url:
        found = _from_url(str(cfg.url), address)
    else:
        raise CheckpointError(f'timm has no weights for {name}')
    return LocalCheckpoint(found.path, address, name, found.config)


def _torchvision_urls() -> Mapping[str, str]:
    from mmengine.runner.checkpoint import get_torchvision_models

    return get_torchvision_models()


def _openmmlab_urls() -> Mapping[str, str]:
    from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models

    urls = dict(get_external_models())
    renamed = {old: urls[new] for old, new in get_deprecated_model_names().items() if new in urls}
    return {**renamed, **urls}


def _mmcls_urls() -> Mapping[str, str]:
    from mmengine.runner.checkpoint import get_mmcls_models

    return get_mmcls_models()


_TABLES: dict[str, Callable[[], Mapping[str, str]]] = {
    'torchvision': _torchvision_urls,
    'modelzoo': _torchvision_urls,
    'openmmlab': _openmmlab_urls,
    'open-mmlab': _openmmlab_urls,
    'mmcls': _mmcls_urls,
}


def _from_table(scheme: str, name: str, address: str) -> LocalCheckpoint:
    urls = _TABLES[scheme]()
    if name not in urls:
        raise CheckpointError(f'{address}: {scheme}:// knows no {name!r}')
    return _from_url(urls[name], address)


def _first_rank_first(fetch: Callable[[], T]) -> T:
    """Lets one process download while the others wait, and then all find the file."""
    from mmengine.dist import barrier, get_rank, is_distributed

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
