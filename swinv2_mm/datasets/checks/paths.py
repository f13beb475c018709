"""Folders and files that the data sets and evaluators of a config name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from swinv2_mm.datasets.checks.configured import FOLDER_WORDS, ConfiguredData, LeafDataset
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.image_sets import (
    find_class_folders,
    find_image_set,
    has_class_folders,
)

_GENERATED = (
    ('SWINV2_MM_SHAPES', 'data/shapes', 'tools/dataset_converters/generate_shapes.py'),
    ('SWINV2_MM_DIGITS', 'data/digits', 'tools/dataset_converters/digits.py'),
)
"""Environment variable, default folder and script of the data sets that a script writes."""


def check_paths(data: ConfiguredData) -> Iterator[Finding]:
    """Find paths that do not exist, each once and without those below a missing folder."""
    reported: list[Path] = []
    for finding in (*_leaf_findings(data), *_evaluator_findings(data)):
        path = Path(finding.place)
        if not any(path.is_relative_to(missing) for missing in reported):
            reported.append(path)
            yield finding


def _leaf_findings(data: ConfiguredData) -> Iterator[Finding]:
    """Yield what the data sets lack."""
    for leaf in data.leaves():
        found = find_image_set(leaf.cfg, leaf.place, _hint(str(leaf.root or '')))
        yield from _missing_paths(leaf) if found is None else found


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
            yield from find_class_folders(folder, str(leaf))


def _evaluator_findings(data: ConfiguredData) -> Iterator[Finding]:
    """Yield the annotation files of evaluators that do not exist."""
    for part in data.parts:
        evaluators = data.cfg.get(f'{part}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
            path = evaluator.get('ann_file')
            if isinstance(path, str) and path and _is_missing(path):
                sentence = f'The annotation file {path} of {part}_evaluator does not exist.'
                yield error(path, sentence, _hint(path))


def _is_missing(path: str) -> bool:
    """Return whether `path` is a local path that does not exist."""
    return '://' not in path and not Path(path).exists()


def _hint(path: str) -> str:
    """Return what to do about missing data."""
    for variable, default, script in _GENERATED:
        folder = os.environ.get(variable, default)
        if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
            return f'Generate the data: python {script} {folder}'
    data = os.environ.get('SWINV2_MM_DATA')
    now = f'it is {data} now' if data else 'it is not set now, so configs look in data/'
    return f'Put the data there, or set SWINV2_MM_DATA to the folder that holds it ({now}).'
