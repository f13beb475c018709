"""The options of an evaluation: test-time augmentation, predictions on disk, pictures."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from mmengine.config import Config, ConfigDict

from swinv2_mm.datasets.checks.configured import as_list
from swinv2_mm.engine.errors import SetupError

_TTA_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': dict(type='swinv2_mm.InstanceTTAModel'),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}
_META_KEYS = {'mmdet': 'img_id', 'mmseg': 'reduce_zero_label', 'mmpretrain': 'sample_idx'}


def use_tta(cfg: Config, scales: Sequence[float] = ()) -> str:
    """Switch a config to test-time augmentation; return what was changed, in words.

    With `scales`, each image is tested at these multiples of the size in the test pipeline, as it is and flipped;
    without, as the config's `tta_pipeline` says, or as it is and flipped.
    """
    if 'panoptic_fusion_head' in cfg.model and cfg.model.test_cfg.get('panoptic_on', True):
        raise SetupError('--tta: panoptic predictions of several views cannot be merged.')
    if any(not 0.1 <= scale <= 10 for scale in scales):
        raise SetupError(
            f'--tta-scales {" ".join(map(str, scales))}: scales are factors such as 0.75 1 1.25.'
        )
    parts = _parts(cfg.test_dataloader.dataset)
    steps = list(parts[0].pipeline)
    has_views = bool(steps) and _kind(steps[-1]) == 'TestTimeAug'
    own = bool(cfg.get('tta_pipeline') or has_views) and not scales
    if scales and has_views:
        raise SetupError('--tta-scales: the test pipeline has views of its own already, use --tta.')
    pipeline = _views(cfg, steps, scales) if not own else steps if has_views else cfg.tta_pipeline
    words = "the config's own" if own else 'horizontal flip'
    if scales:
        words += f', at {", ".join(f"{scale:g}" for scale in scales)} times the size'
    tta_model = cfg.get('tta_model') or _TTA_MODELS[cfg.default_scope]
    if _kind(tta_model) == 'DetTTAModel':  # cannot merge masks
        given = tta_model.get('tta_cfg') or {}
        options = dict(
            iou_threshold=given.get('nms', {}).get('iou_threshold', 0.5),
            max_per_img=given.get('max_per_img', 100),
        )
        tta_model = {**_TTA_MODELS['mmdet'], **options}
    cfg.model = ConfigDict({**tta_model, 'module': cfg.model})
    for part in parts:
        part.pipeline = copy.deepcopy(pipeline)
    return words


def dump_predictions(cfg: Config, out: str) -> None:
    """Keep the predictions: a detector's in a COCO json or pickle file, a classifier's in a pickle file, a segmentor's
    as label PNGs in a folder.

    With a json and a test set without annotations, nothing is evaluated.
    """
    path = Path(out)
    kinds = {
        'mmdet': ('detector', 'DumpDetResults', 'a json or pickle file, e.g. predictions.json'),
        'mmpretrain': ('classifier', 'DumpResults', 'a pickle file, e.g. predictions.pkl'),
    }
    cfg.test_evaluator = as_list(cfg.test_evaluator)
    if cfg.default_scope in kinds:
        kind, metric, fits = kinds[cfg.default_scope]
        as_json = path.suffix == '.json' and kind == 'detector'
        if path.suffix not in ('.pkl', '.pickle') and not as_json:
            raise SetupError(f"--out {out}: a {kind}'s predictions go into {fits}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if as_json:
            _add_json(cfg, path)
        else:
            cfg.test_evaluator += [ConfigDict(type=metric, out_file_path=str(path))]
        return
    if path.is_file() or path.suffix:
        raise SetupError(
            f"--out {out}: a segmentor's predictions go into a folder of PNGs, so name a folder."
        )
    for evaluator in cfg.test_evaluator:
        if evaluator.type == 'IoUMetric':
            evaluator.output_dir = str(path)


def _add_json(cfg: Config, path: Path) -> None:
    """Add the evaluator that writes a json; drop the others if there are no annotations."""
    dataset = innermost(cfg.test_dataloader.dataset)
    ann_file = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    try:
        content = orjson.loads(Path(ann_file).read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(
            f'--out {path}: the category ids come from the COCO json of the test data, and {ann_file or "none"} '
            f'cannot be read: {error}.'
        ) from error
    if not content.get('annotations'):
        cfg.test_evaluator = []
    cfg.test_evaluator += [
        ConfigDict(type='CocoMetric', ann_file=ann_file, format_only=True, outfile_prefix=str(path))
    ]


def join_json(out: str) -> None:
    """Keep one of the files that mmdet has written for `out`, that with masks if there is one."""
    for kind in ('bbox', 'segm'):
        file = Path(f'{out}.{kind}.json')
        if file.is_file():
            file.replace(out)


def add_drawing(cfg: Config, folder: str, limit: int | None) -> None:
    """Draw the predictions into a folder, the first `limit` of them or all."""
    hook = ConfigDict(type='swinv2_mm.SideBySideHook', folder=os.path.abspath(folder), limit=limit)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _parts(dataset: Any) -> list[Any]:
    """Return the configs of the data sets inside wrappers and concatenations."""
    dataset = innermost(dataset)
    inside = dataset.get('datasets')
    return [part for each in inside for part in _parts(each)] if inside else [dataset]


def _kind(step: Any) -> str:
    """Return the type of a config without its scope."""
    return str(step.get('type')).rpartition('.')[2]


def _views(cfg: Config, steps: list[Any], scales: Sequence[float]) -> list[Any]:
    """Return a test pipeline with views at each of `scales`, if there are any, with and without a flip."""
    steps = copy.deepcopy(steps)
    pack = steps.pop()
    keys = ['img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction']
    pack.meta_keys = [_META_KEYS[cfg.default_scope], *keys]
    annotations = [step for step in steps if _kind(step) == 'LoadAnnotations']
    steps = [step for step in steps if _kind(step) != 'LoadAnnotations']
    branches = []
    if scales:
        place = next((i for i, step in enumerate(steps) if _kind(step) == 'Resize'), None)
        if place is None:
            raise SetupError('--tta-scales: the test pipeline has no step of type Resize.')
        branches.append([_resized(steps[place], scale) for scale in scales])
        branches += [[step] for step in steps[place + 1 :]]
        steps = steps[:place]
    # Annotations come after the flip: predictions are flipped back before they are compared with them.
    flips = [
        ConfigDict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)
    ]
    branches += [flips, *[[step] for step in annotations], [pack]]
    return [*steps, ConfigDict(type='TestTimeAug', transforms=branches)]


def _resized(step: ConfigDict, factor: float) -> ConfigDict:
    """Return a copy of a `Resize` step that makes images `factor` times as large."""
    step = copy.deepcopy(step)
    for key in ('scale', 'scale_factor'):
        given = step.get(key)
        if given is not None:
            whole = round if key == 'scale' else float
            sides = [whole(side * factor) for side in as_list(given)]
            step[key] = tuple(sides) if len(sides) > 1 else sides[0]
    return step


def innermost(dataset: Any) -> Any:
    """Return the config of the data set inside wrappers."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def tested_data(cfg: Config) -> Any:
    """Return the config of the data set that a model is tested on, inside wrappers; empty if there is none."""
    dataset = (cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {}
    dataset = innermost(dataset)
    while dataset.get('datasets'):
        dataset = innermost(dataset['datasets'][0])
    return dataset
