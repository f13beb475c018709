"""Find and build trained models by work directory or checkpoint."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, Registry, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from swinv2_mm.checkpoints import guard_mmengine, read_checkpoint_file
from swinv2_mm.checkpoints.detect import prefer_averaged
from swinv2_mm.checkpoints.errors import trusting
from swinv2_mm.checkpoints.sources import cached_file
from swinv2_mm.engine.checkpoint_files import require_checkpoint
from swinv2_mm.engine.config import SCOPES, dicts_in, drop_pretrained, load_config, merge_options
from swinv2_mm.engine.console import import_library, message_of, warn
from swinv2_mm.engine.devices import use_device
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import tested_data
from swinv2_mm.engine.hooks import compare_state, unknown_window, unwrap_names

_LARGEST_TEXT = 1 << 20
_OF_MMCV = {'RoIAlign', 'RoIPool', 'nms', 'soft_nms'}
"""What mmdet and mmcv take from `mmcv.ops` by name, not from a registry."""
_FILE = re.compile(r'://|\.(pkl|pickle|npy|npz|json|ya?ml|csv|txt|pth?|bin|py)$', re.IGNORECASE)


def find_model(model: str | Path, config: str | None = None) -> tuple[Config, str]:
    """Return the config and the checkpoint of a trained model.

    Args:
        model: A checkpoint file or its URL, or a work directory for its newest checkpoint.
        config: The config file; by default, the config that is stored in the checkpoint, which is read without
            executing code, or the only config file in the folder of the checkpoint.
    """
    path = require_checkpoint(model)
    if '://' in path:
        path = str(cached_file(path))
    if config is not None:
        return load_config(config), path
    content = read_checkpoint_file(path, mmap=True)
    meta = content.get('meta') if isinstance(content, dict) else None
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if isinstance(text, str):
        cfg = parse_config(text, path)
        import_library(cfg.default_scope)
        _require_registered(cfg, path)
        return cfg, path
    beside = sorted(Path(path).parent.glob('*.py'))
    if len(beside) != 1:
        found = f'{len(beside)} config files' if beside else 'no config file'
        raise SetupError(
            f'The checkpoint {path} contains no config, and its folder has {found}: name the config with --config.'
        )
    return load_config(str(beside[0])), path


def load_model(
    model: str | Path,
    device: str = 'auto',
    cfg_options: Sequence[str] = (),
    config: str | None = None,
) -> nn.Module:
    """Build a trained model in evaluation mode.

    Args:
        model: See `find_model`.
        device: A device of torch, or `'auto'`.
        cfg_options: Strings `KEY=VALUE` that override the config.
        config: See `find_model`.

    Returns:
        The detector, segmentor or classifier, with the attributes `cfg`, `checkpoint` (the path) and `dataset_meta`
        (`classes` and, where it is known, `palette`).

    Raises:
        SetupError: If the model cannot be found or built, or the checkpoint does not fit it.
        CheckpointError: If the checkpoint cannot be read.
    """
    cfg, path = find_model(model, config)
    merge_options(cfg, cfg_options)
    target = use_device(device, 'none')
    with guard_mmengine():
        built: Any = build_model(cfg, path)
        content: Any = CheckpointLoader.load_checkpoint(path, 'cpu')
    state = built.state_dict()
    if choice := prefer_averaged(content):
        warn(f'{path}: {choice}.')
    unwrap_names(content, state)
    weights = content.get('state_dict', content)
    if window := unknown_window(state, weights):
        warn(f'{path} {window}')
    problem, _ = compare_state(state, weights)
    if problem:
        raise SetupError(f'The checkpoint {path} {problem}: does it belong to this config?')
    built.load_state_dict(weights, strict=False)
    stored = (content.get('meta') or {}).get('dataset_meta') or {}
    built.dataset_meta = _dataset_meta(cfg) | {key.lower(): stored[key] for key in stored}
    built.cfg, built.checkpoint = cfg, path
    return built.to(target).eval()


def build_model(cfg: Config, where: str) -> nn.Module:
    """Build the model of a config with random weights; messages call the config `where`."""
    init_default_scope(cfg.default_scope)
    drop_pretrained(cfg.model)
    try:
        return revert_sync_batchnorm(MODELS.build(cfg.model))
    except Exception as error:
        raise SetupError(f'The model of {where} cannot be built: {message_of(error)}') from error


def parse_config(text: str, where: str) -> Config:
    """Read the text of a config that mmengine has written: literals and `dict(...)`, which are not executed."""
    values = {}
    try:
        if len(text) > _LARGEST_TEXT:
            raise ValueError(f'it has {len(text)} characters')
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                raise ValueError(f'line {node.lineno} is not an assignment')
            value = _DictsAsLiterals().visit(node.value)
            values[node.targets[0].id] = ast.literal_eval(value)
        cfg = Config(values)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise SetupError(
            f'The config in {where} cannot be read without executing it ({error}): name the config file with --config.'
        ) from error
    if cfg.get('default_scope') not in SCOPES or 'model' not in cfg:
        raise SetupError(
            f'The config in {where} is not for detection, segmentation or classification.'
        )
    return cfg


class _DictsAsLiterals(ast.NodeTransformer):
    """Writes `dict(a=1)` as `{'a': 1}`, and `inf` and `nan` as numbers."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Replace a call of `dict`."""
        self.generic_visit(node)
        names = [ast.Constant(item.arg) for item in node.keywords if item.arg]
        plain = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
        if not plain or len(names) < len(node.keywords):
            return node
        return ast.Dict([*names], [item.value for item in node.keywords])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a number."""
        return ast.Constant(float(node.id)) if node.id in ('inf', 'nan') else node


def _require_registered(cfg: Config, where: str) -> None:
    """Check that a config from a checkpoint names registered classes only, and that its model reads no files.

    mmengine imports other names; mmseg unpickles a file that `class_weight` names.
    """
    if trusting.get():
        return
    drop_pretrained(cfg.model)
    for part in dicts_in(cfg.model):
        for key, value in part.items():
            if isinstance(value, str) and _FILE.search(value):
                raise SetupError(
                    f'The model of the config in {where} reads the file {key}={value!r}: name the config file with '
                    '--config.'
                )
    known = _OF_MMCV.union(*(registry.module_dict for registry in _registries()))
    used = [
        cfg.model,
        cfg.get('test_pipeline'),
        cfg.get('test_dataloader'),
        cfg.get('val_dataloader'),
    ]
    for part in dicts_in(used):
        name = part.get('type')
        if name is None:
            continue
        scope, _, last = str(name).rpartition('.')
        if last not in known or scope not in ('', 'mmengine', 'mmcv', 'swinv2_mm', *SCOPES):
            raise SetupError(
                f'The config in {where} names {name!r}, which is not registered: name the config file with --config.'
            )


def _registries() -> Iterator[Registry]:
    """Yield all registries of mmengine and their children."""
    waiting = [item for item in vars(mmengine.registry).values() if isinstance(item, Registry)]
    while waiting:
        registry = waiting.pop()
        yield registry
        waiting += registry.children.values()


def _dataset_meta(cfg: Config) -> dict[str, Any]:
    """Return classes and palette that the config or the class of its test data names."""
    dataset = tested_data(cfg)
    kind = mmengine.registry.DATASETS.get(dataset['type']) if 'type' in dataset else None
    found = {**(getattr(kind, 'METAINFO', None) or {}), **(dataset.get('metainfo') or {})}
    return {key.lower(): value for key, value in found.items() if not isinstance(value, str)}
