"""Folders and files that the data sets and evaluators of a config name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from swinv2_mm.datasets.checks.configured import (
    FOLDER_WORDS,
    ConfiguredData,
    LeafDataset,
    as_list,
    class_folders,
    has_class_folders,
    kind_of,
)
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.read_files import is_local
from swinv2_mm.datasets.published_sets import (
    CIFAR10_FOLDER,
    CIFAR10_URL,
    cifar10_batches,
    find_places365,
    places365_layout,
)

_GENERATED = (
    ('SWINV2_MM_SHAPES', 'data/shapes', 'tools/dataset_converters/generate_shapes.py'),
    ('SWINV2_MM_DIGITS', 'data/digits', 'tools/dataset_converters/digits.py'),
)
"""Environment variable, default folder and script of the data sets that a script writes."""
_DOWNLOADING = {'CIFAR100', 'MNIST', 'FashionMNIST'}
"""Data sets that mmpretrain downloads unless `download=False`."""


def check_paths(data: ConfiguredData) -> Iterator[Finding]:
    """Find paths that do not exist, each once and without those below a missing folder."""
    reported: list[Path] = []
    of_leaves = (finding for leaf in data.leaves() for finding in _find_files(leaf))
    for finding in (*of_leaves, *_evaluator_findings(data)):
        path = Path(finding.place)
        if not any(path.is_relative_to(missing) for missing in reported):
            reported.append(path)
            yield finding


def _find_files(leaf: LeafDataset) -> Iterator[Finding]:
    """Yield what a data set lacks."""
    kind = kind_of(leaf.cfg)
    if kind in ('CIFAR10', 'LocalCIFAR10', 'Places365'):
        try:
            yield from (_find_places(leaf) if kind == 'Places365' else _find_cifar(leaf))
        except ValueError as wrong_split:
            yield error(leaf.place, f'{leaf.place}: {wrong_split}.')
    elif kind in _DOWNLOADING and 'download' not in leaf.cfg:
        sentence = f'{leaf} would download what is missing in {leaf.root}.'
        remedy = f'Allow or forbid it: --cfg-options {leaf.place}.download=True (or False).'
        yield error(leaf.place, sentence, remedy)
    else:
        yield from _missing_paths(leaf)


def _missing_paths(leaf: LeafDataset) -> Iterator[Finding]:
    """Yield the outermost path of a data set that does not exist."""
    named = [
        (leaf.root, f'data root {leaf.root}'),
        (leaf.ann_file, f'annotation file {leaf.ann_file}'),
    ]
    for key, folder in leaf.folders.items():
        named.append((folder, f'folder {folder} ({FOLDER_WORDS.get(key, key)})'))
    for path, words in named:
        if path and _is_missing(path):
            where = '' if os.path.isabs(path) else f' in {os.getcwd()}'
            sentence = f'The {words} of {leaf} does not exist{where}; expected: {leaf.layout}.'
            yield error(path, sentence, _hint(leaf.root or path))
            return
    if has_class_folders(leaf.cfg):
        for folder in leaf.folders.values():
            yield from _find_class_folders(folder, leaf)


def _find_cifar(leaf: LeafDataset) -> Iterator[Finding]:
    """Yield a missing file of CIFAR-10, unless the download was asked for; mmpretrain's own class needs no asking."""
    root = leaf.root or str(leaf.cfg.get('data_prefix') or '')
    batches = cifar10_batches(root, str(leaf.cfg.get('split', 'train')))
    missing = [path for path in batches if not path.is_file()]
    if missing and leaf.cfg.get('download') is not True:
        yield error(
            missing[0],
            f'{missing[0]} of {leaf} does not exist; expected: {root}/{CIFAR10_FOLDER}/ with data_batch_1 to '
            'data_batch_5 and test_batch.',
            f'Unpack {CIFAR10_URL} in {root}, or download it: --cfg-options {leaf.place}.download=True. {_hint(root)}',
        )


def _find_places(leaf: LeafDataset) -> Iterator[Finding]:
    """Yield a finding if Places365 is in none of its layouts."""
    root, split = leaf.root or '', str(leaf.cfg.get('split', 'train'))
    try:
        found = find_places365(root, split)
    except FileNotFoundError:
        expected = places365_layout(root, split)
        yield error(root, f'{leaf} finds no images in {root}; expected: {expected}.', _hint(root))
    else:
        if found.listing is None:
            yield from _find_class_folders(str(found.images), leaf)


def _find_class_folders(folder: str, leaf: LeafDataset) -> Iterator[Finding]:
    """Yield a finding if a folder does not hold one folder per class."""
    if is_local(folder) and not class_folders(folder):
        yield error(
            folder,
            f'The folder {folder} of {leaf} has no folders in it; expected: one for each class, '
            f'{folder}/<class>/*.jpg.',
        )


def _evaluator_findings(data: ConfiguredData) -> Iterator[Finding]:
    """Yield the annotation files of evaluators that do not exist."""
    for part in data.parts:
        for evaluator in as_list(data.cfg.get(f'{part}_evaluator')):
            path = evaluator.get('ann_file')
            if _is_missing(path):
                sentence = f'The annotation file {path} of {part}_evaluator does not exist.'
                yield error(path, sentence, _hint(path))


def _is_missing(path: str) -> bool:
    return is_local(path) and not Path(path).exists()


def _hint(path: str) -> str:
    """Return what to do about missing data."""
    for variable, default, script in _GENERATED:
        folder = os.environ.get(variable, default)
        if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
            return f'Generate the data: python {script} {folder}'
    data = os.environ.get('SWINV2_MM_DATA')
    now = f'it is {data} now' if data else 'it is not set now, so configs look in data/'
    return f'Put the data there, or set SWINV2_MM_DATA to the folder that holds it ({now}).'
