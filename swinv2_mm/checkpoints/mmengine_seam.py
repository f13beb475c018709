"""mmengine reads checkpoints through our hands.

mmengine loads with `weights_only=True` and, when that fails, once more with `weights_only=False`: the code in a hostile
file runs. Its HTTP loader does not try the safe way at all, and its list of harmless calls contains `getattr`, which
leads to everything.

All of its routes (`load_checkpoint`, a Runner's `load_from` and `resume`, `init_cfg`, inferencers) ask
`CheckpointLoader` for the loader of an address, and its public `register_scheme` is made for replacing these. So
every scheme gets ours, in every process that imports this package, whichever tool it runs.
"""

from __future__ import annotations

from typing import Any

from swinv2_mm.checkpoints.detect import unwrap
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.checkpoints.sources import fetch_checkpoint

_SCHEMES = (
    '',
    'http://',
    'https://',
    'timm://',
    'hf://',
    'torchvision://',
    'modelzoo://',
    'openmmlab://',
    'open-mmlab://',
)
_REFUSED = ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


def guard_mmengine() -> None:
    """Replaces the checkpoint loaders of mmengine. May be called again."""
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.register_scheme(list(_SCHEMES), load_from_anywhere, force=True)
    CheckpointLoader.register_scheme('mmcls://', load_from_mmcls, force=True)
    CheckpointLoader.register_scheme(list(_REFUSED), load_from_store, force=True)


def load_from_anywhere(filename: str, map_location: Any = None) -> Any:
    """Loads the checkpoint at an address, safely.

    Args:
        filename: A file or an address that `fetch_checkpoint` knows.
        map_location: Where tensors go; default: where they were saved, as in mmengine.
    """
    return read_checkpoint_file(fetch_checkpoint(filename).path, map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Loads the backbone of a classifier of mmcls."""
    state = unwrap(load_from_anywhere(filename, map_location), filename)
    prefix = 'backbone.'
    return {
        'state_dict': {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }
    }


def load_from_store(filename: str, map_location: Any = None) -> Any:
    """Refuses the stores whose loaders in mmengine may run code from a file.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(f'{filename}: download the file and name your copy')
