"""Who takes part, and where the libraries of the others are."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_mm.ops.window_attention import check_backend

_BACKBONES = 'swinv2_mm.benchmarks.backbones'
_TRAINING = 'swinv2_mm.benchmarks.training'


@dataclass(frozen=True)
class Contestant:
    """Someone who runs a case in a process of its own.

    Attributes:
        name: Name in results; ours begins with `'ours'`.
        builder: `module:function` that makes the task, imported in the process of the contestant.
        library: Module that has to be importable there; None if ours is enough.
        options: What the builder gets beside the case.
    """

    name: str
    builder: str
    library: str | None = None
    options: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @property
    def is_ours(self) -> bool:
        """Whether this is our code."""
        return self.name.startswith('ours')


BACKBONE_PEERS = {
    'timm': 'timm',
    'torchvision': 'torchvision',
    'hf': 'transformers',
    'mmpretrain': 'mmpretrain',
}
"""Library of each peer, by its name on the command line."""

PRODUCTS = {'matmul': 'roofline', 'mm': 'share_of_mm'}
"""Matrix products that are measured beside the models, and the field that says which share of their rate is ours."""

TRAINING_PEERS = {'mmpretrain': 'mmpretrain', 'swin_v1': 'mmdet'}

_HOW_TO_GET = {
    'timm': 'pip install timm',
    'torchvision': 'pip install torchvision',
    'mmdet': 'pip install onedl-mmdetection',
    'transformers': (
        'pip install --no-deps --target DIR/transformers transformers tokenizers, and set SWINV2_MM_PEERS=DIR'
    ),
    'mmpretrain': (
        'pip install --no-deps --target DIR/mmpretrain onedl-mmpretrain einops mat4py model-index ordered-set '
        'markdown, and set SWINV2_MM_PEERS=DIR'
    ),
}


def peer_folder(library: str) -> str | None:
    """Folder to put on the path of a process that imports `library`, `''` if none is needed, None if it is nowhere.

    transformers and mmpretrain cannot share an environment: each may live in a folder of its own below the one that
    `SWINV2_MM_PEERS` names, as `make test` installs them.
    """
    root = os.environ.get('SWINV2_MM_PEERS')
    if root and (Path(root) / library / library).is_dir():
        return str(Path(root).resolve() / library)
    return '' if importlib.util.find_spec(library) else None


def why_absent(library: str) -> str | None:
    """Why a library cannot take part, and how to get it; None if it is there."""
    if peer_folder(library) is not None:
        return None
    return f'{library} is not installed: {_HOW_TO_GET[library]}'


SEQUENTIAL = 'sequential'
"""In place of a backend: attention to one window after the other."""


def ours(backend: str) -> Contestant:
    """Our backbone with one backend of attention.

    Raises:
        ValueError: There is no such backend.
    """
    if backend != SEQUENTIAL:
        check_backend(backend)
    return Contestant(f'ours:{backend}', f'{_BACKBONES}:build_ours', None, {'backend': backend})


def peer(name: str, compiled: bool = False) -> Contestant:
    """The same backbone of another library; `compiled` by torch.compile."""
    return Contestant(
        f'{name}_compiled' if compiled else name,
        f'{_BACKBONES}:build_{name}',
        BACKBONE_PEERS[name],
        {'compile': compiled},
    )


def products() -> list[Contestant]:
    """Large matrix products, `PRODUCTS`: what the machine can do at that moment."""
    builder = 'swinv2_mm.benchmarks.roofline:build_product'
    return [Contestant(name, builder, None, {'product': name}) for name in PRODUCTS]


def trainer(name: str) -> Contestant:
    """A training step with our backbone, `'ours:auto'`, or with that of a peer."""
    is_ours = name.startswith('ours')
    library = None if is_ours else TRAINING_PEERS[name]
    return Contestant(name, f'{_TRAINING}:build_step', library, {'backbone': name})
