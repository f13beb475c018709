"""The options of an evaluation: test-time augmentation, predictions on disk, pictures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from swinv2_mm.engine.drawing import SideBySideHook
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.runner import ConsoleRunner

_TTA_MODELS = {
    'mmdet': 'DetTTAModel',
    'mmseg': 'SegTTAModel',
    'mmpretrain': 'AverageClsScoreTTA',
}
_META_KEYS = {'mmdet': ['img_id'], 'mmseg': ['reduce_zero_label'], 'mmpretrain': ['sample_idx']}


def use_tta(cfg: Config) -> str:
    """Switches a config to test-time augmentation: its own, or a horizontal flip if it defines none.

    mmdet merges boxes only, so a detector's mask head is left out.

    Returns:
        What was changed, in words.
    """
    scope = cfg.default_scope
    is_detector = scope == 'mmdet'
    own = 'tta_pipeline' in cfg
    pipeline = cfg.tta_pipeline if own else _flip_pipeline(cfg)
    words = "the config's own" if own else 'horizontal flip'
    if is_detector and cfg.model.get('roi_head', {}).get('mask_head'):
        cfg.model.roi_head.mask_head = None
        cfg.model.roi_head.mask_roi_extractor = None
        _keep_boxes(cfg)
        words += ', boxes only (masks cannot be merged)'
    default_model: dict[str, Any] = {'type': _TTA_MODELS[scope]}
    if is_detector:
        default_model['tta_cfg'] = {
            'nms': {'type': 'nms', 'iou_threshold': 0.5},
            'max_per_img': 100,
        }
    cfg.model = ConfigDict({**(cfg.get('tta_model') or default_model), 'module': cfg.model})
    _innermost(cfg.test_dataloader.dataset).pipeline = pipeline
    return words


def dump_predictions(cfg: Config, out: str) -> str:
    """Keeps the predictions: a detector's or classifier's in a pickle file, a segmenter's as label PNGs in a folder.

    Returns:
        The path.

    Raises:
        SetupError: The path does not suit.
    """
    path = Path(out)
    evaluators = _evaluators(cfg)
    kinds = {'mmdet': ('detector', 'DumpDetResults'), 'mmpretrain': ('classifier', 'DumpResults')}
    if cfg.default_scope in kinds:
        kind, metric = kinds[cfg.default_scope]
        if path.suffix not in ('.pkl', '.pickle'):
            raise SetupError(
                f"--out {out}: a {kind}'s predictions go into a pickle file, e.g. predictions.pkl."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg.test_evaluator = [
            *evaluators,
            ConfigDict(type=metric, out_file_path=str(path)),
        ]
        return str(path)
    if path.is_file() or path.suffix:
        raise SetupError(
            f"--out {out}: a segmenter's predictions go into a folder of PNGs, so name a folder."
        )
    for evaluator in evaluators:
        if evaluator.type == 'IoUMetric':
            evaluator.output_dir = str(path)
    cfg.test_evaluator = evaluators
    return str(path)


def add_drawing(runner: ConsoleRunner, folder: str, limit: int | None) -> SideBySideHook:
    """Makes the runner draw what it predicts."""
    hook = SideBySideHook(folder, limit)
    runner.register_hook(hook)
    return hook


def _evaluators(cfg: Config) -> list[Any]:
    """Returns the test evaluators as a list."""
    evaluators = cfg.test_evaluator
    return list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]


def _keep_boxes(cfg: Config) -> None:
    """Takes the evaluation of masks out of the test evaluators."""
    evaluators = copy.deepcopy(_evaluators(cfg))
    for evaluator in evaluators:
        metric = evaluator.get('metric')
        if isinstance(metric, (list, tuple)):
            evaluator.metric = [name for name in metric if name != 'segm']
    cfg.test_evaluator = evaluators


def _flip_pipeline(cfg: Config) -> list[Any]:
    """Returns the test pipeline with its last step replaced by one with and without a flip."""
    pipeline = copy.deepcopy(list(_innermost(cfg.test_dataloader.dataset).pipeline))
    pack = pipeline.pop()
    keys = ['img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction']
    pack.meta_keys = [*_META_KEYS[cfg.default_scope], *keys]
    annotations = [step for step in pipeline if step.type == 'LoadAnnotations']
    steps = [step for step in pipeline if step.type != 'LoadAnnotations']
    # Annotations come after the flip: predictions are flipped back before they are compared with them.
    flips = [
        ConfigDict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)
    ]
    branches = [flips, *[[step] for step in annotations], [pack]]
    return [*steps, ConfigDict(type='TestTimeAug', transforms=branches)]


def _innermost(dataset: Any) -> Any:
    """Returns the config of the data set inside wrappers."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset
