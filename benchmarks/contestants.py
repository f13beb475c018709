"""Contestants of the benchmarks, and the location of their libraries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_mm.ops.execution import check_backend


@dataclass(frozen=True)
class Contestant:
    """An implementation that runs a case.

    Attributes:
        name: Name in results; that of our backends begins with `'ours'`.
        builder: `module:function` that builds a `Task` from a case and options, imported in the contestant's process.
        library: Module that the process needs; None for this package.
        options: Options of the builder.
    """

    name: str
    builder: str
    library: str | None = None
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is used."""
        return bool(self.options.get('compile'))


BACKBONE_PEERS = {
    'timm': 'timm',
    'torchvision': 'torchvision',
    'hf': 'transformers',
    'mmpretrain': 'mmpretrain',
    'onnxruntime': 'onnxruntime',
    'openvino': 'openvino',
}
"""Library of each peer, by its name on the command line."""

RUNTIMES = ('onnxruntime', 'openvino')
"""Peers that run our exported model: inference on a CPU only."""

MODEL_PEERS = {'mmpretrain': 'mmpretrain', 'swin_v1': 'mmdet'}

PRODUCTS = {'matmul': 'roofline', 'mm': 'share_of_mm', 'copy': 'share_of_copy'}
"""Reference products to measure the machine, and the result field of our share of their rate."""

SEQUENTIAL = 'sequential'
"""Used as a backend: attention to windows one by one."""
CONSTANT = 'constant'
"""Used as a backend: inside of `constant_weights`."""

_INTO_A_FOLDER = 'pip install --no-deps --target DIR/{}, and set SWINV2_MM_PEERS=DIR'
_HOW_TO_GET = {
    'onnxruntime': 'pip install onnx onnxscript onnxruntime',
    'openvino': 'pip install onnx onnxscript openvino',
    'timm': 'pip install timm',
    'torchvision': 'pip install torchvision',
    'mmdet': 'pip install onedl-mmdetection',
    'transformers': _INTO_A_FOLDER.format('transformers transformers tokenizers'),
    'mmpretrain': _INTO_A_FOLDER.format(
        'mmpretrain onedl-mmpretrain einops mat4py model-index ordered-set markdown'
    ),
}


def peer_folder(library: str) -> str | None:
    """Return the folder to add to the path to import `library`; `''` if not needed, None if it is not installed.

    transformers and mmpretrain cannot share an environment: each can be in a separate folder below
    `SWINV2_MM_PEERS`, as installed by `make test`.
    """
    root = os.environ.get('SWINV2_MM_PEERS')
    if root and (Path(root) / library / library).is_dir():
        return str(Path(root).resolve() / library)
    return '' if importlib.util.find_spec(library) else None


def absent_peers(names: Iterable[str], libraries: Mapping[str, str]) -> dict[str, str]:
    """Return the peers whose library is not installed, with installation hints."""
    return {
        name: f'{libraries[name]} is not installed: {_HOW_TO_GET[libraries[name]]}'
        for name in names
        if peer_folder(libraries[name]) is None
    }


def ours(backend: str, compiled: bool = False) -> Contestant:
    """Return our backbone with an attention backend.

    Raises:
        ValueError: The backend does not exist.
    """
    if backend not in (SEQUENTIAL, CONSTANT):
        check_backend(backend)
    name = _name(f'ours:{backend}', compiled)
    options = {'library': 'native', 'backend': backend, 'compile': compiled}
    return Contestant(name, 'benchmarks.backbones:build', None, options)


def peer(name: str, compiled: bool = False) -> Contestant:
    """Return the same backbone of another library."""
    options = {'library': name, 'compile': compiled}
    builder = 'benchmarks.backbones:build'
    return Contestant(_name(name, compiled), builder, BACKBONE_PEERS[name], options)


def whole_model(name: str, **options: Any) -> Contestant:
    """Return a detector or segmentor with our backbone, `'ours:BACKEND'`, or with that of a peer."""
    options['backbone'] = name
    return Contestant(_name(name), 'benchmarks.models:build', MODEL_PEERS.get(name), options)


def products(*names: str, side: int | None = None) -> list[Contestant]:
    """Return contestants for keys of `PRODUCTS`, with matrices of size `side`."""
    return [
        Contestant(name, 'benchmarks.roofline:build', None, {'product': name, 'side': side})
        for name in names
    ]


def _name(name: str, compiled: bool = False) -> str:
    """Return the name in results, with the backend unless it is the default."""
    return name.removesuffix(':auto').replace(':', '_') + '_compiled' * compiled
