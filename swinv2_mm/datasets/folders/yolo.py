"""YOLO labels, boxes and polygons, in the layouts of Ultralytics, Roboflow, CVAT and darknet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders.files import (
    MOST_CLASSES,
    NO_NAMES,
    CocoWriter,
    Faults,
    Files,
    Found,
    image_sizes,
)

_LISTS = ('classes.txt', 'train.txt', 'val.txt', 'valid.txt', 'test.txt')
_BAD_LABELS = 'label files that cannot be read are left out'
_BAD_IMAGES = 'images with labels of which none can be used are left out'
_BAD_LINES = 'lines of label files that cannot be used are left out'


def recognise(files: Files) -> list[Path]:
    """Return the label files: text files named like an image, with a line of numbers or nothing in them."""
    found = []
    for path in files.ending('.txt'):
        if path.name not in _LISTS and files.image_of(path) is not None:
            first = files.head(path, 256).splitlines()
            if not first or _is_numbers(first[0]):
                found.append(path)
    return found if any(files.head(path, 8).strip() for path in found) else []


def read(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the labels. Images without a label file are background, as in Ultralytics."""
    settings = _settings(files)
    labels = {}
    others = sorted(set(files.ending('.txt')) - set(found))
    for path in (*others, *found):
        image = files.image_of(path)
        if image is not None and path.name not in _LISTS:
            labels[image] = path
    for path in sorted(set(others) - set(labels.values())):
        numbers = 'label' in str(path.parent).lower() or _is_numbers(files.head(path, 256))
        if path.name not in _LISTS and numbers and files.head(path, 1):
            faults.add('label files without an image are left out', path)
    rows = {image: list(_rows(files.root / path, faults)) for image, path in labels.items()}
    classes, notes = _class_names(files, settings), []
    if classes is None:
        ids = [int(row[0]) for some in rows.values() for row in some if 0 <= row[0] < MOST_CLASSES]
        classes = [f'class_{index}' for index in range(max(ids, default=0) + 1)]
        notes.append(NO_NAMES)
    listed = _listed_parts(files, settings)
    shape: Any = settings.get('kpt_shape')
    whole = isinstance(shape, list) and all(isinstance(value, int) for value in shape)
    keypoints = int(np.prod(shape)) if whole else 0
    writer = CocoWriter(classes, faults)
    empty = 0
    for image, size in image_sizes(files.root, files.images, faults).items():
        writer.image(image, size, listed.get(image))
        for row in rows.get(image, ()):
            where = f'{labels[image]}: {" ".join(f"{value:g}" for value in row[:5])}'
            with faults.guard(_BAD_LINES, where):
                _add(writer, row[:5] if len(row) == 5 + keypoints else row)
        if writer.is_empty() and image in labels and files.head(labels[image], 64).strip():
            writer.drop()  # its objects would be learned as background
            faults.add(_BAD_IMAGES, image)
        elif writer.is_empty():
            empty += 1
    if empty:
        notes.append(f'Images without objects, which are background: {empty}.')
    return writer.found('YOLO', files.root, notes)


def _add(writer: CocoWriter, row: np.ndarray) -> None:
    """Add the object of a line: `class x y w h [score]`, or `class x y x y x y ...`."""
    label, values = int(row[0]), row[1:]
    if label != row[0] or not 0 <= label < len(writer.classes):
        raise ValueError(f'class {row[0]:g} of {len(writer.classes)}')
    if len(values) < 4 or not np.isfinite(values).all() or np.abs(values[:4]).max() > 2:
        raise ValueError('not a box or polygon in parts of the image size')
    points = values[: len(values) // 2 * 2].reshape(-1, 2) * writer.size
    if len(values) > 5:
        writer.add(label, polygons=[points.ravel().tolist()])
    else:
        centre, extent = points
        writer.add(label, box=[*(centre - extent / 2), *(centre + extent / 2)])


def _rows(path: Path, faults: Faults) -> Iterator[np.ndarray]:
    """Yield the numbers of the lines of a label file."""
    with faults.guard(_BAD_LABELS, path.name):
        for line in path.read_text(encoding='utf-8-sig').splitlines():
            if line.strip():
                with faults.guard(_BAD_LINES, f'{path.name}: {line[:30]}'):
                    yield np.array(line.split(), float)


def _is_numbers(line: bytes) -> bool:
    """Return whether a text begins with a line of at least five numbers."""
    words = line.splitlines()[0].split() if line.strip() else []
    try:
        return len(words) >= 5 and all(abs(float(word)) < 1e6 for word in words[:5])
    except ValueError:
        return False


def _settings(files: Files) -> dict[str, Any]:
    """Return the content of `data.yaml`, empty if there is none, with its folder as `near`."""
    for path in sorted(files.ending('.yaml', '.yml'), key=lambda path: len(path.parts)):
        try:
            content = yaml.safe_load((files.root / path).read_text(encoding='utf-8-sig'))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as broken:
            reason = ' '.join(str(broken).split())[:200]
            raise ImageSetError(f'{files.root / path} cannot be read: {reason}') from broken
        if isinstance(content, dict) and 'names' in content:
            return dict(content, near=path.parent)
    return {}


def _class_names(files: Files, settings: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes, or None."""
    names = settings.get('names')
    if isinstance(names, dict):
        whole = {int(key): str(value) for key, value in names.items() if str(key).isdecimal()}
        numbered = {key: value for key, value in whole.items() if key < MOST_CLASSES}
        count = max(numbered, default=-1) + 1
        return [numbered.get(index, f'class_{index}') for index in range(count)]
    if isinstance(names, list):
        return [str(name) for name in names]
    for path in files.all:
        if path.name in ('classes.txt', 'obj.names'):
            return files.lines(path)
    return None


def _listed_parts(files: Files, settings: dict[str, Any]) -> dict[Path, str]:
    """Return the parts of images as `data.yaml` gives them: folders, or text files with a path a line."""
    parts: dict[Path, str] = {}
    for part in ('test', 'val', 'train'):
        entries = settings.get(part) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            place = files.resolve(str(entry), settings['near'])
            if place is not None and place.suffix == '.txt':
                named = [files.resolve(line, place.parent) for line in files.lines(place)]
                parts.update((path, part) for path in named if path is not None)
            elif place is not None:
                parts.update((path, part) for path in files.images if place in path.parents)
    return parts
