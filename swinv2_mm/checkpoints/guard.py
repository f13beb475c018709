"""Loading of checkpoints in mmengine, without running code from them.

mmengine falls back to `weights_only=False`, and allows `getattr`, which is enough to run any code. All its functions
(`load_checkpoint`, `load_from` and `resume` of a Runner, `init_cfg`, inferencers) get the loader of an address from
`CheckpointLoader`, where `register_scheme` replaces it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner.checkpoint import CheckpointLoader, _process_mmcls_checkpoint

from swinv2_mm.checkpoints.detect import unwrap
from swinv2_mm.checkpoints.resume_state import before_train, remove_steering
from swinv2_mm.checkpoints.sources import fetch_checkpoint
from swinv2_mm.checkpoints.tensors import require_finite

_SCHEMES = [
    *('', 'http://', 'https://', 'timm://', 'hf://', 'torchvision://', 'modelzoo://'),
    *('openmmlab://', 'open-mmlab://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'),
]


class guard_mmengine:
    """Make mmengine refuse checkpoints that would run code, and know the addresses of `fetch_checkpoint`.

    It also removes what `remove_steering` removes, and refuses weights that are not finite. As a function, it holds for
    the rest of the process; as a context manager, inside of the `with` statement. `pavi://` cannot be loaded meanwhile.
    """

    def __init__(self) -> None:
        self._before = OrderedDict(CheckpointLoader._schemes), CheckpointHook.before_train
        CheckpointLoader.register_scheme(_SCHEMES, load_from_file, force=True)
        CheckpointLoader.register_scheme('mmcls://', load_from_mmcls, force=True)
        CheckpointHook.before_train = before_train

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        CheckpointLoader._schemes, CheckpointHook.before_train = self._before


def load_from_file(filename: str, map_location: Any = None) -> Any:
    """Load the checkpoint at an address of `fetch_checkpoint` to `map_location`, see `torch.load`."""
    content = fetch_checkpoint(filename).read(map_location)
    if str(map_location) != 'meta':
        require_finite(content, filename)
    return remove_steering(content, filename)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Load the backbone of a classifier of mmcls."""
    return _process_mmcls_checkpoint(unwrap(load_from_file(filename, map_location), filename))
