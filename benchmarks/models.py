"""Training step and inference of detectors and segmentors, with different backbones in the same config."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from benchmarks.cases import SIZES, Case
from benchmarks.processes import ROOT
from benchmarks.results import median
from benchmarks.task import Task, autocast, milliseconds
from benchmarks.weights import load_weights
from swinv2_mm.engine.config import enable_amp
from swinv2_mm.ops.linear import constant_weights
from swinv2_mm.ops.winograd import use_winograd

TASKS = {
    'mask_rcnn': ('mmdet', 'mask-rcnn_swinv2_fpn.py', 'schedule_1x.py'),
    'upernet': ('mmseg', 'upernet_swinv2.py', 'schedule_160k.py'),
    'semantic_fpn': ('mmseg', 'fpn_swinv2.py', 'schedule_160k.py'),
}
"""Library, and files of model and schedule below `configs/_base_`, by task."""

_OBJECTS = 8  # per image of a detection batch; COCO has 7 on average
_CONFIDENCE = 6.0
_PART_ROUNDS = 5
_HELD = ExitStack()  # until the process ends
_PARTS = {
    'preprocessing': ('data_preprocessor', 'forward'),
    'backbone': ('backbone', 'forward'),
    'neck': ('neck', 'forward'),
    'rpn_head': ('rpn_head', 'predict'),
    'roi_head': ('roi_head', 'predict'),
    'boxes': ('roi_head', 'predict_bbox'),
    'masks': ('roi_head', 'predict_mask'),
    'decode_head': ('decode_head', 'predict'),
}  # modules of detectors and segmentors, and the methods that a prediction calls


def build(case: Case, options: Mapping[str, Any]) -> Task:
    """Build a training step with its optimizer, or a prediction.

    Args:
        case: The case.
        options: `backbone` (`'ours:BACKEND'`, `'mmpretrain'` or `'swin_v1'`); `weights`, the file; `heads`, the folder
            of the shared weights of heads, written if absent; `overrides` (optional), config overrides with keys such
            as `'model.test_cfg.rpn.max_per_img'`; `preprocesses` (optional), whether a prediction begins with decoded
            images instead of a preprocessed batch.
    """
    hide_transformers()
    scope = TASKS[case.task][0]
    importlib.import_module(f'{scope}.models')
    cfg = load_config(case, options['backbone'])
    cfg.merge_from_dict(options.get('overrides', {}))
    torch.backends.cudnn.benchmark = scope == 'mmseg'  # as in our configs
    with DefaultScope.overwrite_default_scope(scope):
        if options['backbone'] == 'mmpretrain':
            importlib.import_module('mmpretrain.models')
        model: Any = MODELS.build(cfg.model)
        model.init_weights()
        _share_weights(model, case, options)
        if options['backbone'].startswith('ours'):  # as `swinv2-mm train`, `test` and `predict` do
            use_winograd(model)
            if case.mode == 'eval':
                _HELD.enter_context(constant_weights())
        model.to(case.device).train(case.mode == 'train')
        batch = _detection_batch(case) if scope == 'mmdet' else _segmentation_batch(case)
        info: dict[str, Any] = {}
        if case.mode == 'train':
            wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
            return Task(_step(model, batch, wrapper, info), case.device, info=info)
        return _prediction(model, batch, case, info, options.get('preprocesses', False))


def _step(model: Any, batch: Any, wrapper: Any, info: dict[str, Any]) -> Callable[[], None]:
    """Return a training step that stores its first loss in `info`."""

    def step() -> None:
        losses = model.train_step(batch, optim_wrapper=wrapper)
        if 'loss' not in info:  # only once: reading it synchronises the GPU
            info['loss'] = losses['loss'].item()
            if not info['loss'] > 0:
                raise ValueError(f'the loss is {info["loss"]}: the step learns nothing')

    return step


def _prediction(
    model: Any, batch: Any, case: Case, info: dict[str, Any], preprocesses: bool
) -> Task:
    """Return a prediction of boxes, labels and masks, or label maps."""
    if hasattr(model, 'roi_head'):  # random weights would not give detections to post-process
        with torch.no_grad():
            model.roi_head.bbox_head.fc_cls.bias[0] += _CONFIDENCE
    given = None if preprocesses else model.data_preprocessor(batch, False)

    def predict() -> Any:
        with torch.no_grad(), autocast(case.device, case.dtype):
            data = model.data_preprocessor(batch, False) if given is None else given
            return model(**data, mode='predict')

    def details() -> dict[str, Any]:
        samples: dict[str, list[float]] = {}
        for name, (module, method) in _PARTS.items():
            if hasattr(getattr(model, module, None), method):
                samples[name] = _timed(getattr(model, module), method, case.device)
        try:
            found = [predict() for _ in range(_PART_ROUNDS)][-1]
        finally:
            for name in samples:
                module, method = _PARTS[name]
                delattr(getattr(model, module), method)
        numbers = [len(x.pred_instances) for x in found if 'pred_instances' in x]
        parts = {name: median(taken) for name, taken in samples.items() if taken}
        return {'parts_ms': parts, 'detections': sum(numbers) / len(found) if numbers else None}

    return Task(predict, case.device, info=info, details=details)


def _timed(module: Any, method: str, device: str) -> list[float]:
    """Replace a method by one that appends the milliseconds of each call to the returned list."""
    original = getattr(module, method)
    samples: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        results = []
        samples.append(milliseconds(lambda: results.append(original(*args, **kwargs)), device))
        return results[0]

    setattr(module, method, timed)
    return samples


def hide_transformers() -> None:
    """Allow importing mmpretrain and mmdet with transformers 5. Call before importing their `models`.

    mmpretrain's multi-modal models derive from classes that transformers 5 removed, and mmdet imports mmpretrain if it
    is installed. mmpretrain imports these models depending on the metadata of transformers, which is overridden here.
    Afterwards `import transformers` fails in this process.
    """
    cast(dict[str, Any], sys.modules)['transformers'] = None
    try:
        from mmpretrain.utils import dependency
    except Exception:  # reported by the code that needs it
        return
    dependency.WITH_MULTIMODAL = False


def load_config(case: Case, backbone: str) -> Config:
    """Return the config of a task, with a backbone of the size of the case.

    Raises:
        ValueError: A CPU cannot train in the dtype.
    """
    scope, model, schedule = TASKS[case.task]
    base = ROOT / 'configs/_base_'
    cfg = Config.fromfile(base / 'models' / model)
    cfg.merge_from_dict(Config.fromfile(base / 'schedules' / schedule).to_dict())
    rate = cfg.model.backbone.get('drop_path_rate', 0.0)
    cfg.model.backbone = ConfigDict(_backbone(backbone, scope, case), drop_path_rate=rate)
    dims = list(SIZES[case.arch].dims)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = dims
    elif 'auxiliary_head' in cfg.model:
        cfg.model.decode_head.in_channels = dims
        cfg.model.auxiliary_head.in_channels = dims[cfg.model.auxiliary_head.in_index]
    if scope == 'mmseg':
        cfg.model.data_preprocessor.size = case.input
        for head in filter(None, (cfg.model.decode_head, cfg.model.get('auxiliary_head'))):
            head.norm_cfg = dict(type='BN', requires_grad=True)
    if case.dtype != 'fp32':
        if case.dtype == 'fp16' and case.device == 'cpu':
            raise ValueError('fp16 training needs a GPU; on a CPU use bf16')
        enable_amp(cfg, torch.device(case.device), case.dtype)
    return cfg


def _backbone(name: str, scope: str, case: Case) -> dict[str, Any]:
    """Return the config of a backbone; mmdet and mmseg each have a Swin V1."""
    size = SIZES[case.arch]
    cfg: dict[str, Any]
    if name == 'swin_v1':
        cfg = dict(type=f'{scope}.SwinTransformer', window_size=case.window)
        cfg |= dict(embed_dims=size.embed_dims, depths=size.depths, num_heads=size.num_heads)
    elif name == 'mmpretrain':
        windows = [case.window] * len(size.depths)
        cfg = dict(type='mmpretrain.SwinTransformerV2', arch=vars(size), window_size=windows)
        cfg |= dict(img_size=case.input, pad_small_map=True)
    else:
        cfg = dict(type='swinv2_mm.SwinTransformerV2', arch=vars(size), window_size=case.window)
        cfg |= dict(attn_backend=name.partition(':')[2])
    return cfg | dict(out_indices=(0, 1, 2, 3))


def _share_weights(model: Any, case: Case, options: Mapping[str, Any]) -> None:
    """Load the same heads into all models, and the same backbone into those with SwinV2."""
    if options['backbone'] != 'swin_v1':
        layout = 'mmpretrain' if options['backbone'] == 'mmpretrain' else 'native'
        load_weights(model.backbone, options['weights'], layout)
    path = Path(options['heads']) / f'{case.task}.pth'
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True), strict=False)
    else:
        state = model.state_dict().items()
        torch.save({key: x for key, x in state if not key.startswith('backbone.')}, path)


def _detection_batch(case: Case) -> dict[str, Any]:
    """Return noise images with random boxes and masks."""
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(
        case.batch,
        (3, *case.input),
        num_items=[_OBJECTS] * case.batch,
        num_classes=80,
        with_mask=True,
        use_box_type=True,
    )


def _segmentation_batch(case: Case) -> dict[str, Any]:
    """Return noise images with label maps of 16 x 16 blocks."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 3, *case.input)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    samples = []
    for _ in range(case.batch):
        blocks = torch.randint(0, 150, (1, 1, 16, 16), generator=generator)
        labels = torch.nn.functional.interpolate(blocks.float(), size=case.input).long()[0]
        sample = SegDataSample(metainfo=dict(img_shape=case.input, ori_shape=case.input))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return {'inputs': list(images), 'data_samples': samples}
