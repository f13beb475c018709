"""What `tools/check_data.py` calls: findings, class balance, sizes and pictures of the data of a config."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import DefaultScope
from tqdm import tqdm

from swinv2_mm.apis.pictures import draw, write
from swinv2_mm.apis.results import Prediction, categories_of
from swinv2_mm.apis.side_by_side import truth_of
from swinv2_mm.datasets.checks import (
    FILE_STAGES,
    PIPELINE_STAGES,
    READING_STAGES,
    ConfiguredData,
    Finding,
    check_data,
)
from swinv2_mm.datasets.checks.files import total
from swinv2_mm.datasets.checks.read_files import find_step
from swinv2_mm.datasets.checks.samples import prepare, spread, untouched_randomness
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.console import start_logging
from swinv2_mm.engine.errors import SetupError

EXIT_OK, EXIT_SUFFERS = 0, 2
_LISTED = 5
"""Files or ids of a finding that are printed."""
_PICTURES = 8
"""Pictures that are drawn of each part."""
_AREAS = (0, 32**2, 96**2, np.inf)
"""Limits of small, medium and large objects, as COCO has them."""


def report(
    config: str,
    *,
    split: Sequence[str] = ('train', 'val', 'test'),
    sample: int | None = 1000,
    json_file: str | None = None,
    show_dir: str | None = None,
    cfg_options: Sequence[str] = (),
) -> int:
    """Check the data of a config and print what is found.

    The arguments are the options of `tools/check_data.py`; `sample=None` reads all files.

    Returns:
        The exit code: 0, or 2 if training would suffer.
    """
    start_logging(0)
    try:
        cfg = load_config(config, cfg_options)
    except SetupError as wrong:
        print(wrong)
        return EXIT_SUFFERS
    # A test set is often the validation set once more.
    parts = [
        p for p in split if p != 'test' or cfg.get('test_dataloader') != cfg.get('val_dataloader')
    ]
    data = ConfiguredData(cfg, tuple(parts), sample=sample, progress=_progress)
    stages = FILE_STAGES + READING_STAGES + (PIPELINE_STAGES if 'train' in data.parts else ())
    with DefaultScope.overwrite_default_scope(data.scope):
        findings = list(check_data(data, stages))
        errors = sum(finding.severity == 'error' for finding in findings)
        for finding in sorted(findings, key=lambda finding: (finding.severity, finding.kind)):
            print('\n'.join(_lines(finding)))
        statistics = {part: _statistics(data, part) for part in data.parts} if not errors else {}
        for part, tables in statistics.items():
            for title, table in tables.items():
                print(f'{part}: {title}: ' + ', '.join(f'{k} {v}' for k, v in table.items()))
        if show_dir and not errors:
            print(f'pictures: {_draw(data, Path(show_dir))} in {show_dir}')
    if json_file:
        found = [dict(vars(finding), count=max(1, len(finding.items))) for finding in findings]
        content = dict(config=config, findings=found, statistics=statistics)
        Path(json_file).write_text(json.dumps(content, indent=1))
    warnings = len(findings) - errors
    print(f'{errors} error{"s" * (errors != 1)}, {warnings} warning{"s" * (warnings != 1)}')
    return EXIT_SUFFERS if errors else EXIT_OK


def _progress(items: Iterable[Any], count: int, title: str) -> Iterable[Any]:
    return tqdm(items, total=count, desc=f'{title}: files', unit='file', disable=None)


def _lines(finding: Finding) -> list[str]:
    """Return the lines that are printed of a finding."""
    count = f' ({len(finding.items)})' if finding.items else ''
    lines = [f'{finding.severity} {finding.kind}{count}: {finding}']
    if len(finding.items) > _LISTED:
        more = len(finding.items) - _LISTED
        lines += [f'    {item}' for item in finding.items[:_LISTED]] + [f'    and {more} more']
    return [line.encode('utf-8', 'backslashreplace').decode() for line in lines]


def _statistics(data: ConfiguredData, part: str) -> dict[str, dict[str, Any]]:
    """Return class balance and sizes of a part, by title."""
    tables: dict[str, dict[str, Any]] = {}
    files = [data.coco_file(leaf) for leaf in data.leaves() if leaf.part == part]
    found = [file for file in files if file is not None]
    dataset = data.dataset(part)
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    if found:
        counts = total([file.class_counts for file in found])
        tables['annotations by class'] = {key: counts[key] for key, _ in counts.most_common()}
        areas = np.histogram(np.concatenate([file.area for file in found]), _AREAS)[0]
        tables['annotations by size'] = {
            name: int(area) for name, area in zip(('small', 'medium', 'large'), areas)
        }
    elif data.scope == 'mmseg':
        labels = total([record.labels for record in data.records(part)])
        pixels = max(1, sum(labels.values()))
        shares = {name: f'{labels[index] / pixels:.2%}' for index, name in enumerate(classes)}
        tables['pixels by class'] = shares
    elif hasattr(dataset, 'get_gt_labels'):
        labels = Counter(dataset.get_gt_labels().tolist())
        tables['images by class'] = {name: labels[index] for index, name in enumerate(classes)}
    sides = [max(record.image.size) for record in data.records(part) if record.image]
    limits = Counter(2 ** int(np.ceil(np.log2(max(1, side)))) for side in sides)
    tables['images by longer side, up to'] = {str(k): limits[k] for k in sorted(limits)}
    return tables


def _draw(data: ConfiguredData, folder: Path) -> int:
    """Draw what the pipelines make of samples of each part, and return the number of pictures."""
    drawn = 0
    for part in data.parts:
        dataset = data.dataset(part)
        categories = categories_of(dataset.metainfo)
        multiband = find_step(dataset, 'LoadMultibandImage')
        with untouched_randomness():
            for index in spread(len(dataset), _PICTURES):
                sample = prepare(dataset, index)
                if not isinstance(sample, dict) or 'data_samples' not in sample:
                    continue
                truth = sample['data_samples']
                image = sample['inputs'].permute(1, 2, 0).numpy()
                image = np.ascontiguousarray(
                    multiband.picture_of(image)[..., ::-1] if multiband else image
                )
                if part != 'train' and 'ori_shape' in truth:  # annotations keep the original size
                    image = cv2.resize(image, truth.ori_shape[1::-1])
                prediction = Prediction(
                    truth_of(truth, len(categories.names)), image, None, categories
                )
                stem = Path(truth.get('img_path') or '').stem
                write(folder / part / f'{index:06d}_{stem}.png', draw(prediction))
                drawn += 1
    return drawn
