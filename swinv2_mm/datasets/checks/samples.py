"""What the real training pipeline makes of a few samples.

mmdet's loading flags instances that it cannot use as ignored instead of failing: with `poly2mask=False` every RLE mask.
Training then runs, all losses go to zero and the evaluation finds nothing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import cv2
import numpy as np
import torch

from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.read_files import data_info, find_step
from swinv2_mm.datasets.errors import ImageSetError

_HANDFUL = 8
"""Samples looked at when all is well."""
_ENOUGH = 64
"""Samples looked at before it is said that nothing reaches the model."""
_PLACE = 'train_dataloader.dataset'


def check_building(data: ConfiguredData) -> Iterator[Finding]:
    """Find data sets that cannot be built from their files, or are empty."""
    for part in data.parts:
        place = f'{part}_dataloader.dataset'
        try:
            if len(data.dataset(part)):
                continue
        except Exception as raised:
            # Registries raise errors anew, as the same or another kind, with the place of the class before the message.
            if broken := _innermost(raised, json.JSONDecodeError):
                files = [leaf.ann_file for leaf in data.leaves() if leaf.place.startswith(place)]
                where = ', '.join(filter(None, files)) or place
                yield error(where, f'{where} is not valid json: {broken}.')
                continue
            if unreadable := _innermost(raised, ImageSetError):
                yield error(place, f'{unreadable}.')
                continue
            if 'Found 0 files in subfolders' in str(raised):
                yield error(place, f'The folders of {place} hold no picture.')
                continue
            # Of an empty list of samples.
            if 'need at least one array to concatenate' not in str(raised):
                raise
        yield error(
            place,
            f'{place} is empty: no image is listed, or filter_cfg removes all of them (filter_empty_gt drops images '
            'without an annotation of the configured classes).',
            'Check its paths, suffixes and metainfo.classes.',
        )


def check_annotations(data: ConfiguredData) -> Iterator[Finding]:
    """Find out whether the annotations of a detector's training set reach the model."""
    if data.scope != 'mmdet' or 'train' not in data.parts:
        return
    dataset = data.dataset('train')
    samples = annotated = reached = ignored = 0
    rle = False
    with untouched_randomness():
        for index in spread(len(dataset), _HANDFUL, _ENOUGH):
            instances, sample = (
                data_info(dataset, index).get('instances', []),
                prepare(dataset, index),
            )
            if isinstance(sample, Finding):
                yield sample
                return
            usable = [item for item in instances if not item.get('ignore_flag')]
            samples += 1
            annotated += len(usable)
            rle |= any(isinstance(item.get('mask'), dict) for item in usable)
            packed = _data_sample(sample)
            if hasattr(packed, 'gt_instances'):
                reached += len(packed.gt_instances)
                flagged = len(getattr(packed, 'ignored_instances', ()))
                ignored += max(0, flagged - (len(instances) - len(usable)))
            elif sample is not None:
                reached += 1  # a kind of sample that this check does not know
            if reached and samples >= _HANDFUL:
                break
    cause = remedy = ''
    if rle and not getattr(find_step(dataset, 'LoadAnnotations'), 'poly2mask', True):
        cause = (
            ', because LoadAnnotations(poly2mask=False) reads polygons only and their masks are RLE'
        )
        remedy = 'In LoadAnnotations, set poly2mask=True.'
    of = f'{annotated} instances in {samples} sampled images'
    if not annotated and not reached:
        sentence = f'None of {samples} sampled images of {_PLACE} has an annotation of the configured classes.'
        remedy = 'Check the annotation file and metainfo.classes, or set filter_cfg=dict(filter_empty_gt=True).'
        yield error(_PLACE, sentence, remedy)
    elif not reached:
        yield error(
            _PLACE,
            f'No annotation of {_PLACE} reaches the model: of {of}, the training pipeline flags {ignored} as '
            f'ignored and drops the rest{cause}.',
            remedy or 'Check its loading, cropping and filtering.',
        )
    elif ignored:
        sentence = f'the training pipeline flags {ignored} of {of} as ignored{cause}.'
        yield Finding('warning', _PLACE, sentence, remedy)


def check_label_maps(data: ConfiguredData) -> Iterator[Finding]:
    """Find out whether labels of a segmentor's training set reach the model through the pipeline."""
    num_classes = data.segmentation_classes if 'train' in data.parts else 0
    if not num_classes:
        return
    dataset, samples = data.dataset('train'), 0
    with untouched_randomness():
        for index in spread(len(dataset), _HANDFUL, _ENOUGH):
            sample = prepare(dataset, index)
            if isinstance(sample, Finding):
                yield sample
                return
            samples += 1
            truth = getattr(_data_sample(sample), 'gt_sem_seg', None)
            if truth is None or bool((truth.data < num_classes).any()):
                return
    sentence = f'No label of {samples} sampled images of {_PLACE} reaches the model: every pixel is ignored (255).'
    remedy = 'Check the label files, reduce_zero_label and the crop of the pipeline.'
    yield error(_PLACE, sentence, remedy)


def check_image_labels(data: ConfiguredData) -> Iterator[Finding]:
    """Find labels of whole images that are out of range, and pictures that cannot be read."""
    if data.scope != 'mmpretrain' or 'train' not in data.parts:
        return
    dataset, head = data.dataset('train'), data.cfg.model.get('head')
    num_classes = head.get('num_classes') if isinstance(head, dict) else None
    with untouched_randomness():
        for count, index in enumerate(spread(len(dataset), _HANDFUL, _ENOUGH)):
            raw = data_info(dataset, index)
            labels = np.atleast_1d(raw.get('gt_label', ()))
            image = raw.get('img_path', f'number {index}')
            if num_classes is not None and ((labels < 0) | (labels >= num_classes)).any():
                yield error(
                    image,
                    f'The picture {image} of {_PLACE} has the label {labels.tolist()}: expected 0 to {num_classes - 1} '
                    f'for num_classes={num_classes}.',
                    'Set num_classes, or correct the labels.',
                )
                return
            sample = prepare(dataset, index) if count < _HANDFUL else None
            if isinstance(sample, Finding):
                yield sample
                return


def prepare(dataset: Any, index: int) -> Any:
    """Return what the pipeline makes of a sample, or a finding if the file of its image is missing or broken."""
    try:
        return (getattr(dataset, 'prepare_data', None) or dataset.__getitem__)(index)
    except FileNotFoundError as missing:
        path = missing.filename or missing
        return error(path, f'{path} does not exist, but the data set lists it (sample {index}).')
    except (AssertionError, cv2.error) as failed:
        if not re.search('failed to load image|imdecode', str(failed)):
            raise
        path = data_info(dataset, index).get('img_path', f'sample {index}')
        return error(
            path, f'{path} cannot be read as a picture.', 'Replace it or take it out of the set.'
        )


def spread(size: int, *counts: int) -> list[int]:
    """Return indices spread over a data set: first the least count of them, then more for each further count."""
    parts = [np.linspace(0, size - 1, min(size, count)).astype(int).tolist() for count in counts]
    return list(dict.fromkeys(chain.from_iterable(parts)))


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Leave the random generators as they are: a run with checks equals one without."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _data_sample(sample: Any) -> Any:
    """Return the packed annotations of a sample, or None."""
    return sample.get('data_samples') if isinstance(sample, dict) else None


def _innermost(raised: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind that was raised first, in the chain that led to `raised`."""
    found = None
    while raised is not None:
        found = raised if isinstance(raised, kind) else found
        raised = raised.__cause__ or raised.__context__
    return found
