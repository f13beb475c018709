"""Does any annotation reach the model? Runs the real training pipeline over a handful of samples.

mmdet's loading flags instances that it cannot use as ignored instead of failing: with `poly2mask=False` every RLE mask.
Training then runs, all losses go to zero and the evaluation finds nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swinv2_mm.engine.errors import SetupError

_HANDFUL = 8
"""Samples looked at when all is well."""
_ENOUGH = 64
"""Samples looked at before it is said that nothing reaches the model."""


@dataclass
class _Counts:
    """What the samples looked at so far held."""

    samples: int = 0
    annotated: int = 0  # instances, or label maps, in the data set
    reached: int = 0  # the same in what the model gets
    ignored: int = 0  # instances flagged by the pipeline, over those flagged in the data set
    rle: bool = False
    problems: list[str] = field(default_factory=list)


def check_samples(
    dataset: Any, num_classes: int | None, place: str = 'train_dataloader.dataset'
) -> str | None:
    """Checks that annotations come through the training pipeline.

    Args:
        dataset: The built training data set.
        num_classes: Number of classes of the segmentation head, or None for a detector.
        place: Where the config defines the data set, for messages.

    Returns:
        A warning if only a part of the annotations comes through, else None.

    Raises:
        SetupError: The data set is empty, an image or label file is missing, a label is out of range, or no annotation
            of any sample reaches the model.
    """
    size = len(dataset)
    if size == 0:
        raise SetupError(empty_message(place))
    counts = _Counts()
    with _untouched_randomness():
        for index in _spread(size):
            _look_at(dataset, index, num_classes, counts)
            if counts.reached and counts.samples >= min(size, _HANDFUL):
                break
    if not counts.reached:
        raise SetupError(_nothing_message(dataset, counts, num_classes, place))
    if counts.ignored:
        return (
            f'the training pipeline flags {counts.ignored} of {counts.annotated} instances in {counts.samples} sampled '
            f'images as ignored{_rle_advice(dataset, counts)}'
        )
    return None


def check_labels(
    dataset: Any, num_classes: int | None, place: str = 'train_dataloader.dataset'
) -> None:
    """Checks labels and pictures of a set of whole images.

    Args:
        dataset: The built training data set.
        num_classes: Number of classes of the head; None if it is not known.
        place: Where the config defines the data set, for messages.

    Raises:
        SetupError: The data set is empty, a label is out of range, or a picture is missing or cannot be read.
    """
    size = len(dataset)
    if size == 0:
        raise SetupError(empty_message(place))
    with _untouched_randomness():
        for count, index in enumerate(_spread(size)):
            raw = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
            image = raw.get('img_path', f'number {index}')
            labels = np.atleast_1d(raw.get('gt_label', ()))
            if num_classes is not None and ((labels < 0) | (labels >= num_classes)).any():
                raise SetupError(
                    f'The picture {image} of {place} has the label {labels.tolist()}: expected 0 to {num_classes - 1} '
                    f'for num_classes={num_classes}. Set num_classes, or correct the labels.'
                )
            if count < _HANDFUL:
                _read_picture(dataset, index, image)


def _read_picture(dataset: Any, index: int, image: str) -> None:
    """Runs the pipeline over one picture."""
    try:
        (getattr(dataset, 'prepare_data', None) or dataset.__getitem__)(index)
    except FileNotFoundError as error:
        raise SetupError(
            f'{error.filename or error} does not exist, but the training set lists it (sample {index}).'
        ) from error
    except AssertionError as error:
        if 'failed to load image' not in str(error):
            raise
        raise SetupError(
            f'{image} cannot be read as a picture: replace it or take it out of the set.'
        ) from error


def empty_message(place: str) -> str:
    """Returns the sentence for a data set without samples."""
    return (
        f'{place} is empty: no image is listed, or filter_cfg removes all of them (filter_empty_gt drops images '
        'without an annotation of the configured classes). Check its paths, suffixes and metainfo.classes.'
    )


def _look_at(dataset: Any, index: int, num_classes: int | None, counts: _Counts) -> None:
    """Adds one sample to the counts."""
    raw = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    prepare = getattr(dataset, 'prepare_data', None) or dataset.__getitem__
    try:
        if num_classes is not None and 'seg_map_path' in raw:
            _check_label_file(dataset, raw, num_classes)
        sample = prepare(index)
    except FileNotFoundError as error:
        missing = error.filename or error
        raise SetupError(
            f'{missing} does not exist, but the training set lists it (sample {index}, image {raw.get("img_path")}).'
        ) from error
    counts.samples += 1
    if num_classes is not None:
        counts.annotated += 1
    else:
        instances = raw.get('instances', [])
        usable = [item for item in instances if not item.get('ignore_flag')]
        counts.annotated += len(usable)
        counts.rle |= any(isinstance(item.get('mask'), dict) for item in usable)
    if sample is None:  # the pipeline dropped it
        return
    annotations: Any = sample.get('data_samples') if isinstance(sample, dict) else None
    if not hasattr(annotations, 'gt_instances' if num_classes is None else 'gt_sem_seg'):
        counts.reached += 1  # a kind of sample that this check does not know
        return
    if num_classes is not None:
        labels = annotations.gt_sem_seg.data
        counts.reached += bool((labels < num_classes).any())
        return
    counts.reached += len(annotations.gt_instances)
    flagged_before = len(instances) - len(usable)
    flagged_now = len(getattr(annotations, 'ignored_instances', ()))
    counts.ignored += max(0, flagged_now - flagged_before)


def _check_label_file(dataset: Any, raw: dict[str, Any], num_classes: int) -> None:
    """Checks the values of one label file after the pipeline's own loading."""
    loading = _transform(dataset, 'LoadAnnotations')
    if loading is None:
        return
    path = raw['seg_map_path']
    if not Path(path).is_file() and '://' not in path:
        raise FileNotFoundError(2, 'no label file', path)
    labels = loading({**raw, 'seg_fields': []})['gt_seg_map']
    if labels.ndim != 2:
        raise SetupError(
            f'The label file {path} has the shape {labels.shape}: expected one channel that holds class numbers, '
            'not colours.'
        )
    ignored = {255, getattr(dataset, 'ignore_index', 255)}
    wrong = [
        int(value)
        for value in np.unique(labels)
        if value >= num_classes and int(value) not in ignored
    ]
    if wrong:
        shift = bool(raw.get('reduce_zero_label'))
        raise SetupError(
            f'The label file {path} holds the labels {wrong[:8]}{" ..." if len(wrong) > 8 else ""}'
            f'{" (after reduce_zero_label took 1 off)" if shift else ""}: expected 0 to {num_classes - 1} for '
            f'num_classes={num_classes}, and 255 for pixels to ignore. Set num_classes and the classes of the data set'
            f'{"" if shift else ", or reduce_zero_label=True if 0 means unlabelled"}.'
        )


def _nothing_message(dataset: Any, counts: _Counts, num_classes: int | None, place: str) -> str:
    """Returns the sentence for a training set of which nothing reaches the model."""
    if num_classes is not None:
        return (
            f'No label of {counts.samples} sampled images of {place} reaches the model: every pixel is ignored (255). '
            'Check the label files, reduce_zero_label and the crop of the pipeline.'
        )
    if not counts.annotated:
        return (
            f'None of {counts.samples} sampled images of {place} has an annotation of the configured classes: check '
            'the annotation file and metainfo.classes, or set filter_cfg=dict(filter_empty_gt=True).'
        )
    return (
        f'No annotation of {place} reaches the model: of {counts.annotated} instances in {counts.samples} sampled '
        f'images, the training pipeline flags {counts.ignored} as ignored and drops the rest'
        f'{_rle_advice(dataset, counts) or ". Check its loading, cropping and filtering"}.'
    )


def _rle_advice(dataset: Any, counts: _Counts) -> str:
    """Returns the remedy if masks are run lengths and the pipeline reads polygons only."""
    loading = _transform(dataset, 'LoadAnnotations')
    if counts.rle and not getattr(loading, 'poly2mask', True):
        return (
            ', because their masks are RLE and LoadAnnotations(poly2mask=False) reads polygons only: '
            'set poly2mask=True'
        )
    return ''


def _transform(dataset: Any, name: str) -> Any:
    """Returns the data set's first transform of that class name, through wrappers; None if there is none."""
    while not hasattr(dataset, 'pipeline') or not hasattr(dataset.pipeline, 'transforms'):
        inner = getattr(dataset, 'dataset', None) or next(
            iter(getattr(dataset, 'datasets', [])), None
        )
        if inner is None:
            return None
        dataset = inner
    return next((item for item in dataset.pipeline.transforms if type(item).__name__ == name), None)


def _spread(size: int) -> Iterator[int]:
    """Yields up to `_ENOUGH` indices, the first `_HANDFUL` of them spread over the whole data set."""
    first = np.unique(np.linspace(0, size - 1, min(size, _HANDFUL)).astype(int)).tolist()
    yield from first
    more = np.unique(np.linspace(0, size - 1, min(size, _ENOUGH)).astype(int)).tolist()
    yield from (index for index in more if index not in set(first))


@contextmanager
def _untouched_randomness() -> Iterator[None]:
    """Leaves the random generators as they were: a run with checks equals one without."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
