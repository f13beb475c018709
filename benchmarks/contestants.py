"""Who takes part, and where the libraries of the others are."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_mm.execution import check_backend


@dataclass(frozen=True)
class Contestant:
    """Someone who runs a case.

    Attributes:
        name: Name in results; ours begins with `'ours'`.
        builder: `module:function` that makes a `Task` from a case and options, imported in the contestant's process.
        library: Module that has to be importable there; None if ours is enough.
        options: What the builder gets beside the case.
    """

    name: str
    builder: str
    library: str | None = None
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is in use."""
        return bool(self.options.get('compile'))


BACKBONE_PEERS = {
    'timm': 'timm',
    'torchvision': 'torchvision',
    'hf': 'transformers',
    'mmpretrain': 'mmpretrain',
}
"""Library of each peer, by its name on the command line."""

TRAINING_PEERS = {'mmpretrain': 'mmpretrain', 'swin_v1': 'mmdet'}

PRODUCTS = {'matmul': 'roofline', 'mm': 'share_of_mm', 'copy': 'share_of_copy'}
"""What the machine can do, measured beside the models, and the field of the share of its rate that ours reaches."""

SEQUENTIAL = 'sequential'
"""In place of a backend: attention to one window after the other."""

_INTO_A_FOLDER = 'pip install --no-deps --target DIR/{}, and set SWINV2_MM_PEERS=DIR'
_HOW_TO_GET = {
    'timm': 'pip install timm',
    'torchvision': 'pip install torchvision',
    'mmdet': 'pip install onedl-mmdetection',
    'transformers': _INTO_A_FOLDER.format('transformers transformers tokenizers'),
    'mmpretrain': _INTO_A_FOLDER.format(
        'mmpretrain onedl-mmpretrain einops mat4py model-index ordered-set markdown'
    ),
}


def peer_folder(library: str) -> str | None:
    """Folder to put on the path of a process that imports `library`, `''` if none is needed, None if it is nowhere.

    transformers and mmpretrain cannot share an environment: each may be in a folder of its own below the one that
    `SWINV2_MM_PEERS` names, as `make test` installs them.
    """
    root = os.environ.get('SWINV2_MM_PEERS')
    if root and (Path(root) / library / library).is_dir():
        return str(Path(root).resolve() / library)
    return '' if importlib.util.find_spec(library) else None


def absent_peers(names: Iterable[str], libraries: Mapping[str, str]) -> dict[str, str]:
    """Peers whose library is not installed, with how to get it."""
    return {
        name: f'{libraries[name]} is not installed: {_HOW_TO_GET[libraries[name]]}'
        for name in names
        if peer_folder(libraries[name]) is None
    }


def ours(backend: str, compiled: bool = False) -> Contestant:
    """Our backbone with one backend of attention.

    Raises:
        ValueError: There is no such backend.
    """
    if backend != SEQUENTIAL:
        check_backend(backend)
    name = _name(f'ours:{backend}', compiled)
    options = {'library': 'native', 'backend': backend, 'compile': compiled}
    return Contestant(name, 'benchmarks.backbones:build', None, options)


def peer(name: str, compiled: bool = False) -> Contestant:
    """The same backbone of another library."""
    options = {'library': name, 'compile': compiled}
    builder = 'benchmarks.backbones:build'
    return Contestant(_name(name, compiled), builder, BACKBONE_PEERS[name], options)


def trainer(name: str, **options: Any) -> Contestant:
    """A detector or segmenter on our backbone, `'ours:BACKEND'`, or on that of a peer."""
    options['backbone'] = name
    return Contestant(_name(name), 'benchmarks.training:build', TRAINING_PEERS.get(name), options)


def products(*names: str, side: int | None = None) -> list[Contestant]:
    """Keys of `PRODUCTS` as contestants; `side`: that of their matrices."""
    return [
        Contestant(name, 'benchmarks.roofline:build', None, {'product': name, 'side': side})
        for name in names
    ]


def _name(name: str, compiled: bool = False) -> str:
    """Name in results: that of a backend only where it is not the default."""
    return name.removesuffix(':auto').replace(':', '_') + '_compiled' * compiled
