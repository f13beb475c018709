"""A whole training step of Mask R-CNN and UperNet, with our backbone or another in the same config.

`build_step` runs in the process of a contestant. mmdet imports mmpretrain wherever it finds it, so only the contestant
that is mmpretrain has it on its path.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

import swinv2_mm
from swinv2_mm.benchmarks.cases import SIZES, Case
from swinv2_mm.benchmarks.synthetic import detection_batch, segmentation_batch
from swinv2_mm.benchmarks.task import Task
from swinv2_mm.benchmarks.weights import load_weights
from swinv2_mm.engine import cpu_amp  # noqa: F401  registers the wrapper of mixed precision on a CPU
from swinv2_mm.engine.config import enable_amp

TASKS = {
    'mask_rcnn': ('mmdet', 'mask-rcnn_swinv2_fpn.py', 'schedule_1x.py'),
    'upernet': ('mmseg', 'upernet_swinv2.py', 'schedule_160k.py'),
}
"""By task: its library, and the files of model and schedule below `configs/_base_`."""


@dataclass
class Trainee:
    """A model and what it learns from.

    Attributes:
        model: In training mode, on the device of the case.
        wrapper: Its optimizer.
        batch: A synthetic batch, as the data loader would give it.
        info: What the results should say about it; `loss` from the first step on.
    """

    model: Any
    wrapper: Any
    batch: dict[str, Any]
    info: dict[str, Any]

    def step(self) -> None:
        """Forward pass, losses, backward pass and optimizer step.

        Raises:
            ValueError: The first loss is not positive.
        """
        losses = self.model.train_step(self.batch, optim_wrapper=self.wrapper)
        if 'loss' not in self.info:  # once: reading it waits for the GPU
            loss = self.info['loss'] = losses['loss'].item()
            if not loss > 0:
                raise ValueError(f'the loss is {loss}: the step learns nothing')


def build_step(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """A step of `build_trainee`, as a task."""
    trainee = build_trainee(case, options)
    return Task(trainee.step, None, case['device'], trainee.info)


def build_trainee(case: Mapping[str, Any], options: Mapping[str, Any]) -> Trainee:
    """Build a detector or segmenter, its optimizer and a batch.

    Args:
        case: The case; its mode is the task.
        options: `backbone` (`'ours:BACKEND'`, `'mmpretrain'` or `'swin_v1'`), `weights` and `heads`: files of the
            weights that all share; the second is written if there is none. `overrides` (optional): what to change in
            the config, by keys such as `'model.test_cfg.rpn.max_per_img'`.
    """
    parsed = Case.from_dict(case)
    scope, _, _ = TASKS[parsed.mode]
    _register(scope)
    cfg = load_base(parsed, options['backbone'])
    cfg.merge_from_dict(options.get('overrides', {}))
    with DefaultScope.overwrite_default_scope(scope):
        return _build(cfg, parsed, scope, options)


def load_base(case: Case, backbone: str) -> Config:
    """The config of a task, with a backbone of the size of the case.

    Args:
        case: The case.
        backbone: See `build_trainee`.
    """
    scope, model, schedule = TASKS[case.mode]
    base = _configs() / '_base_'
    cfg = Config.fromfile(base / 'models' / model)
    cfg.merge_from_dict(Config.fromfile(base / 'schedules' / schedule).to_dict())
    given = cfg.model.backbone
    cfg.model.backbone = ConfigDict(
        backbone_config(backbone, scope, case, given.get('drop_path_rate', 0.0))
    )
    dims = list(SIZES[case.arch].dims)
    if scope == 'mmdet':
        cfg.model.neck.in_channels = dims
    else:
        cfg.model.data_preprocessor.size = case.input
        cfg.model.decode_head.in_channels = dims
        cfg.model.auxiliary_head.in_channels = dims[cfg.model.auxiliary_head.in_index]
        for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
            head.norm_cfg = dict(type='BN', requires_grad=True)
    if case.dtype != 'fp32':
        enable_amp(cfg, case.device == 'cuda')
        if case.device == 'cuda':
            cfg.optim_wrapper.dtype = {'bf16': 'bfloat16', 'fp16': 'float16'}[case.dtype]
        elif case.dtype == 'fp16':
            raise ValueError('fp16 training needs a GPU; on a CPU use bf16')
    return cfg


def backbone_config(name: str, scope: str, case: Case, drop_path_rate: float) -> dict[str, Any]:
    """The config of a backbone.

    Args:
        name: See `build_trainee`.
        scope: `'mmdet'` or `'mmseg'`, each of which has a Swin V1 of its own.
        case: Size and window.
        drop_path_rate: Stochastic depth.

    Raises:
        ValueError: The name is unknown.
    """
    size = SIZES[case.arch]
    common = dict(drop_path_rate=drop_path_rate, out_indices=(0, 1, 2, 3))
    if name.startswith('ours'):
        return dict(
            type='swinv2_mm.SwinTransformerV2',
            arch=vars(size),
            window_size=case.window,
            attn_backend=name.partition(':')[2],
            **common,
        )
    if name == 'mmpretrain':
        return dict(
            type='mmpretrain.SwinTransformerV2',
            arch=vars(size),
            img_size=case.input,
            window_size=[case.window] * len(size.depths),
            pad_small_map=True,
            **common,
        )
    if name == 'swin_v1':
        return dict(
            type=f'{scope}.SwinTransformer',
            embed_dims=size.embed_dims,
            depths=size.depths,
            num_heads=size.num_heads,
            window_size=case.window,
            **common,
        )
    raise ValueError(f'unknown backbone {name!r}: expected ours:BACKEND, mmpretrain or swin_v1')


def _register(scope: str) -> None:
    """Imports what registers the models of a library."""
    importlib.import_module(f'{scope}.models')


def _build(cfg: Config, case: Case, scope: str, options: Mapping[str, Any]) -> Trainee:
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    name = options['backbone']
    if name == 'mmpretrain':
        importlib.import_module('mmpretrain.models')
    model: Any = MODELS.build(cfg.model)
    model.init_weights()
    _share_weights(model, name, options)
    model.to(case.device)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    make = detection_batch if scope == 'mmdet' else segmentation_batch
    classes = (
        cfg.model.roi_head.bbox_head.num_classes
        if scope == 'mmdet'
        else cfg.model.decode_head.num_classes
    )
    batch = make(case.batch, case.input, classes)
    info: dict[str, Any] = {
        'shared_weights': name != 'swin_v1',
        'parameters': sum(p.numel() for p in model.parameters()),
    }
    return Trainee(model, wrapper, batch, info)


def _share_weights(model: Any, name: str, options: Mapping[str, Any]) -> None:
    """Gives all models the same heads, and those with a SwinV2 the same backbone."""
    if name != 'swin_v1':
        layout = 'mmpretrain' if name == 'mmpretrain' else 'native'
        load_weights(model.backbone, options['weights'], layout)
    heads = {
        key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')
    }
    path = Path(options['heads'])
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    else:
        torch.save(heads, path)


def _configs() -> Path:
    """The folder `configs`: of the checkout, or of the installed package."""
    package = Path(swinv2_mm.__file__).resolve().parent
    for folder in (package.parent / 'configs', package / '.mim' / 'configs'):
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(f'no configs beside or in {package}: run from a checkout')
