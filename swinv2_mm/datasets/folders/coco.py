"""COCO json in any common layout of folders, among them the exports of Roboflow."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.datasets.checks.coco_file import CocoFile
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders.files import (
    EMPTY,
    Faults,
    Files,
    Found,
    folder_part,
    measured,
    part_of,
    split_off,
)

_KEYS = re.compile(rb'"(images|annotations|categories|licenses|info)"\s*:')
_OF_AN_IMAGE = re.compile(rb'"(shapes|imagePath|imageData|flags)"\s*:')
_OTHER_TASKS = re.compile(r'caption|panoptic|stuff|image_info|keypoint', re.IGNORECASE)
_SAMPLE = 50


def recognise(files: Files) -> list[Path]:
    """Return the COCO jsons."""
    found = []
    for path in files.ending('.json'):
        head = files.head(path)
        if _KEYS.search(head) and not _OF_AN_IMAGE.search(head):
            # Label Studio puts a json with categories alone beside YOLO labels.
            with suppress(OSError):
                found += [path] if b'"images"' in (files.root / path).read_bytes() else []
    return [path for path in found if not _OTHER_TASKS.search(path.name)] or found


def read(files: Files, found: list[Path], faults: Faults) -> Found:
    """Read the jsons; those that lack fields are completed in a copy."""
    by_part: dict[str, list[Path]] = {}
    for path in found:
        part = part_of(path.stem) or folder_part(path) or 'train'
        by_part.setdefault(part, []).append(path)
    parts: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for part, paths in by_part.items():
        paths = [path for path in paths if path.name.startswith('instances')] or paths
        if len(paths) > 1:
            listed = ', '.join(map(str, paths[:4]))
            remedy = 'Leave one there.'
            if len({path.parts[0] for path in paths}) == len(paths):
                remedy = f'Name the folder of one data set, e.g. {files.root / paths[0].parts[0]}.'
            raise ImageSetError(
                f'{len(paths)} files could be the annotations for {part}: {listed}. {remedy}'
            )
        try:
            file = CocoFile(files.root / paths[0])
        except ValueError as broken:
            raise ImageSetError(str(broken)) from broken
        folder = _image_folder(files, paths[0], part, file)
        if None in file.image_ids or None in file.file_names or np.isnan(file.sizes).any():
            raise ImageSetError(f'{paths[0]} has images without id, file_name, width or height.')
        numbers = np.concatenate([file.area, file.boxes.ravel()])
        gaps = np.isnan(numbers).any() or file.crowd_missing.any() or (file.image_rows < 0).any()
        source = files.root / paths[0]
        parts[part] = (_completed(source, faults) if gaps else source, files.root / folder)
        # Without the parent category that Roboflow adds.
        every = [str(category['name']) for category in file.categories]
        names[part] = [name for name in every if name not in file.parents]
    layout = 'Roboflow COCO' if found[0].name.startswith('_annotations.coco') else 'COCO'
    classes = names.get('train') or next(iter(names.values()))
    return Found(f'{layout} json', 'instances', classes, parts)


def split(content: Path | dict[str, Any], share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of a json for training and for validation, split by image."""
    whole = json.loads(content.read_bytes()) if isinstance(content, Path) else content
    parts = []
    for images in split_off(whole['images'], share):
        ids = {image['id'] for image in images}
        annotations = [item for item in whole['annotations'] if item['image_id'] in ids]
        parts.append(dict(whole, images=images, annotations=annotations))
    return parts[0], parts[1]


def _image_folder(files: Files, path: Path, part: str, file: CocoFile) -> Path:
    """Return the folder, relative to the root, that most of the images of a json are in."""
    names = [name for name in file.file_names if name]
    names = names[:: max(1, len(names) // _SAMPLE)]
    folders = {Path(), path.parent}
    for image in files.images:
        folders.update(image.parents)

    def rank(folder: Path) -> tuple[Any, ...]:
        count = sum((files.root / folder / name).is_file() for name in names)
        own = folder_part(folder / 'image') == part
        return -count, not own, folder != path.parent, len(folder.parts), str(folder)

    best = min(folders, key=rank)
    if names and not rank(best)[0]:
        raise ImageSetError(
            f'None of the images of {path} (e.g. {names[0]!r}) is below {files.root}.'
        )
    return best


def _completed(path: Path, faults: Faults) -> dict[str, Any]:
    """Return the content of a json with `bbox`, `area` and `iscrowd` in every annotation."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    images = {image['id']: image for image in content['images']}
    whole = []
    for item in content.get('annotations', []):
        with faults.guard('annotations that cannot be read are left out', item.get('id')):
            image, segmentation = images[item['image_id']], item.pop('segmentation', None)
            if isinstance(segmentation, (list, dict)) and segmentation:
                item['segmentation'] = segmentation
            if not (_are_numbers(item.get('bbox'), 4) and _are_numbers([item.get('area')], 1)):
                x, y, w, h = item['bbox'] if _are_numbers(item.get('bbox'), 4) else (0, 0, 0, 0)
                box = [x, y, x + w, y + h] if w else None
                polygons = segmentation if isinstance(segmentation, list) else ()
                fields = measured((image['width'], image['height']), box, polygons)
                if fields is None:
                    faults.add(EMPTY, f'one in {image["file_name"]}')
                    continue
                item.update(bbox=fields['bbox'], area=fields['area'])
            item.setdefault('iscrowd', 0)
            whole.append(item)
    return dict(content, annotations=whole)


def _are_numbers(values: Any, count: int) -> bool:
    """Return whether `values` is a list of as many finite numbers."""
    return (
        isinstance(values, list)
        and [type(v) in (int, float) and isfinite(v) for v in values] == [True] * count
    )
