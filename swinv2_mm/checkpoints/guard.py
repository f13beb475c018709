"""Loading of checkpoints in mmengine, without running code from them.

mmengine falls back to `weights_only=False`, and allows `getattr`, which is enough to run any code. All its functions
(`load_checkpoint`, `load_from` and `resume` of a Runner, `init_cfg`, inferencers) get the loader of an address from
`CheckpointLoader`, where `register_scheme` replaces it.

A Runner that resumes executes the text of `meta.config`, inferencers that of `meta.cfg` and
`message_hub.runtime_info.cfg`, and `CheckpointHook` deletes files that `message_hub.runtime_info` names.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, _process_mmcls_checkpoint

from swinv2_mm.checkpoints.detect import require_finite, require_names, unwrap
from swinv2_mm.checkpoints.errors import CheckpointError, trusting
from swinv2_mm.checkpoints.sources import fetch_checkpoint

_SCHEMES = [
    *('', 'http://', 'https://', 'timm://', 'hf://', 'torchvision://', 'modelzoo://'),
    *('openmmlab://', 'open-mmlab://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'),
]
# mmengine compares the number of these with the number of processes.
_GPU_IDS = re.compile(
    r'^gpu_ids *= *(range\(\d{1,4}(, *\d{1,4})?\)|\[[\d, ]{0,9999}\])', re.MULTILINE
)
_BEFORE_TRAIN: Callable[[Any, Runner], None] = CheckpointHook.before_train


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
    require_names(content, filename)
    if str(map_location) != 'meta':
        require_finite(content, filename)
    return remove_steering(content, filename)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Load the backbone of a classifier of mmcls."""
    return _process_mmcls_checkpoint(unwrap(load_from_file(filename, map_location), filename))


def remove_steering(content: Any, where: str) -> Any:
    """Remove the texts of configs, and names of files outside of the folder of checkpoints; return `content`.

    Inside `trust_checkpoints`, the texts of configs stay. CheckpointError says that mmengine writes other types.
    """
    if not isinstance(content, Mapping):
        return content
    meta = _dict_in(content, 'meta', where)
    info = _dict_in(_dict_in(content, 'message_hub', where), 'runtime_info', where)
    steps = [meta.get(key, 0) for key in ('epoch', 'iter')]
    if 'message_hub' in content and not all(type(step) is int for step in steps):
        raise CheckpointError(f'{where}: epoch or iter in its meta is not a whole number')
    if not trusting.get():
        gpu_ids = _GPU_IDS.search(str(meta.pop('config', '')))
        if gpu_ids:
            meta['config'] = gpu_ids[0]
        for texts in (meta, info):
            texts.pop('cfg', None)
    kept = info.get('keep_ckpt_ids', [])
    if not isinstance(kept, list) or any(type(step) is not int for step in kept):
        info['keep_ckpt_ids'] = []
    for key in info:
        if key == 'last_ckpt':
            info[key] = None
        elif str(key).startswith('best_ckpt'):
            info[key] = _name_of_best(info[key])
    return content


def _dict_in(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = content.get(key, {})
    if isinstance(found, dict):
        return found
    if 'message_hub' not in content:  # weights of another library
        return {}
    raise CheckpointError(f'{where}: its {key} is a {type(found).__name__}, not a dict')


def _name_of_best(path: Any) -> str | None:
    """Return the name of a file that `CheckpointHook` may delete: `best_...`, without its folder."""
    name = re.split(r'[/\\]', path)[-1] if isinstance(path, str) else ''
    return name if name.startswith('best_') else None


def before_train(hook: CheckpointHook, runner: Runner) -> None:
    """Stands for `CheckpointHook.before_train`; looks for the best checkpoints in the folder of the hook only."""
    _BEFORE_TRAIN(hook, runner)

    def within(path: Any) -> Any:
        name = _name_of_best(path)
        return name and hook.file_backend.join_path(hook.out_dir, name)

    if hasattr(hook, 'best_ckpt_path'):
        hook.best_ckpt_path = within(hook.best_ckpt_path)
    for key, path in getattr(hook, 'best_ckpt_path_dict', {}).items():
        hook.best_ckpt_path_dict[key] = within(path)
