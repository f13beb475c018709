"""Settings of data sets and heads that do not fit together, and checkpoints of other classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swinv2_mm.checkpoints import CheckpointError, read_checkpoint_file
from swinv2_mm.datasets.checks.classes import configured_classes, listed
from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding, error


def check_ann_files(data: ConfiguredData) -> Iterator[Finding]:
    """Find data sets that name several annotation files, of which mmengine joins none."""
    for leaf in data.leaves():
        files = leaf.cfg.get('ann_file')
        if isinstance(files, (list, tuple)):
            yield error(
                leaf.place,
                f'{leaf.place}.ann_file names {len(files)} files, expected one.',
                "Set dataset=dict(type='ConcatDataset', datasets=[dict(..., ann_file='a.json'), ...]).",
            )


def check_palettes(data: ConfiguredData) -> Iterator[Finding]:
    """Find palettes with another number of colours than classes."""
    for leaf in data.leaves():
        palette = (leaf.cfg.get('metainfo') or {}).get('palette')
        classes = configured_classes(data, leaf)
        if palette and classes and len(palette) < len(classes):
            yield error(
                leaf.place,
                f'{leaf.place}.metainfo.palette has {len(palette)} colours for {len(classes)} classes.',
                'Add colours, or leave the palette out for one that is made up.',
            )


def check_zero_label_steps(data: ConfiguredData) -> Iterator[Finding]:
    """Find pipelines that disagree with their data set on `reduce_zero_label`."""
    for leaf in data.leaves() if data.scope == 'mmseg' else ():
        reduce = bool(data.setting(leaf, 'reduce_zero_label'))
        for index, step in enumerate(leaf.cfg.get('pipeline') or ()):
            own = step.get('reduce_zero_label') if isinstance(step, Mapping) else None
            if own is not None and bool(own) is not reduce:
                yield error(
                    leaf.place,
                    f'{leaf.place} has reduce_zero_label={reduce}, and its pipeline.{index} {own}.',
                    'Leave it out of the pipeline.',
                )


def check_zero_labels(data: ConfiguredData) -> Iterator[Finding]:
    """Find parts that disagree on `reduce_zero_label`."""
    first: tuple[str, bool] | None = None
    for leaf in data.leaves() if data.scope == 'mmseg' else ():
        reduce = bool(data.setting(leaf, 'reduce_zero_label'))
        first = first or (leaf.place, reduce)
        if reduce is not first[1]:
            yield error(
                leaf.place,
                f'{first[0]} has reduce_zero_label={first[1]}, and {leaf.place} {reduce}: labels would not agree.',
                'Set the same in all data sets.',
            )


def check_single_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find segmentation heads with a softmax over one class, whose loss is always 0."""
    if data.scope != 'mmseg' or 'train' not in data.parts:
        return
    for name in ('decode_head', 'auxiliary_head'):
        heads = data.cfg.model.get(name) or []
        for head in [heads] if isinstance(heads, Mapping) else heads:
            losses: Any = head.get('loss_decode') or {}
            losses = [losses] if isinstance(losses, Mapping) else losses
            softmax = any(
                loss.get('type', 'CrossEntropyLoss') == 'CrossEntropyLoss'
                and not loss.get('use_sigmoid')
                for loss in losses
            )
            if head.get('num_classes') == 1 and softmax:
                yield error(
                    f'model.{name}',
                    f'model.{name} has num_classes=1 and a softmax, whose loss is always 0.',
                    'Set num_classes=2 with the background as the first class, or use_sigmoid=True in loss_decode.',
                )


def check_checkpoint_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find a checkpoint whose classes have other names or another order than those of the config."""
    path = data.cfg.get('load_from')
    if not isinstance(path, str) or not Path(path).is_file():
        return
    try:
        meta = read_checkpoint_file(path, mmap=True).get('meta')
    except (CheckpointError, AttributeError, OSError):
        return  # loading it says what is wrong with it
    of_checkpoint = (meta.get('dataset_meta') or {}) if isinstance(meta, Mapping) else {}
    theirs = [str(name) for name in of_checkpoint.get('classes') or ()]
    for leaf in data.leaves():
        ours = [str(name) for name in configured_classes(data, leaf) or ()]
        if theirs and ours and len(theirs) == len(ours) and theirs != ours:
            yield Finding(
                'warning',
                path,
                f'The checkpoint {path} was trained for the classes {listed(theirs)}, and {leaf} has {listed(ours)}.',
                'Weights of the heads belong to the classes of the checkpoint, in its order.',
            )
            return
