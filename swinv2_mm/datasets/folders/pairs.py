"""Folders of images with label maps, and folders that are classes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.datasets.checks.read_files import count_values, read_image
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders.files import (
    NO_NAMES,
    Faults,
    Files,
    Found,
    folder_part,
    key_of,
    part_of,
)

IGNORED = 255
_MASK_FOLDER = re.compile(r'(annot(ations?)?|labels?|masks?|segmentationclass(raw)?|gt|seg\w*)$')
_MAPS = ('labelmap.txt', 'class_dict.csv', 'classes.txt', 'labels.txt')
Numbers = dict[Any, int]
"""Numbers of classes by the value or the colour that they have in a label map."""


def recognise_masks(files: Files) -> list[Path]:
    """Return the label maps: images in a folder of that name, most of which go with an image elsewhere."""
    masks = [path for path in files.images if _is_mask(path)]
    return masks if 2 * len(_paired(files, masks)) > len(masks) else []


def read_masks(files: Files, found: list[Path], faults: Faults) -> Found:
    """Pair images and label maps, and find the classes from the values."""
    pairs = _paired(files, found)
    used = {*pairs, *pairs.values()}
    for path in files.images:
        if path not in used:
            noun = 'label maps without an image' if _is_mask(path) else 'images without a label map'
            faults.add(f'{noun} are left out', path)
    names, colours = _class_map(files)
    counts: Counter[int] = Counter()
    coloured = False
    with ThreadPoolExecutor(8) as threads:
        paths = [str(files.root / path) for path in pairs.values()]
        read = zip(list(pairs), threads.map(lambda path: _values(path, colours), paths))
        for image, (fault, values, in_colour) in read:
            if fault:
                faults.add(f'label maps that {fault} are left out', pairs.pop(image))
            elif in_colour and not colours:
                raise ImageSetError(
                    f'{files.root / pairs[image]} is a label map in colours: put labelmap.txt with a line '
                    '`name:red,green,blue` for each class beside the data.'
                )
            else:
                counts.update(values)
                coloured |= in_colour
    if not counts and not coloured:
        raise ImageSetError(
            f'No label map in {files.root} can be used. ' + ' '.join(faults.lines())
        )
    parts: dict[str, list[tuple[Path, Path]]] = {}
    for image, mask in sorted(pairs.items()):
        part = folder_part(image) or folder_part(mask) or 'train'
        parts.setdefault(part, []).append((image, mask))
    notes = []
    binary = set(counts) in ({0, IGNORED}, {IGNORED})
    kept = sorted(value for value in counts if value != IGNORED or binary)
    mapping: Numbers | None = {value: index for index, value in enumerate(kept)}
    classes = names
    if colours and coloured:
        mapping = colours
    elif names and max(kept) < len(names):
        mapping = None
    elif binary and len(names) != len(kept):
        mapping, classes = {0: 0, IGNORED: 1}, ['background', 'foreground']
    elif not names or len(names) != len(kept):
        mapping = None if max(kept) + 1 == len(kept) else mapping
        classes = [f'class_{value}' for value in kept]
        notes.append(NO_NAMES)
    if len(classes) > IGNORED:
        raise ImageSetError(
            f'The label maps in {files.root} have {len(classes)} values: are they label maps?'
        )
    if IGNORED in counts and not binary:
        share = counts[IGNORED] / sum(counts.values())
        notes.append(f'The value 255 ({share:.1%} of the pixels) is ignored.')
    return Found('images with label maps', 'semantic', classes, parts, notes, mapping)


def recognise_classes(files: Files) -> list[Path]:
    """Return the images, if all are in folders that can be classes."""
    classes = {name for _, name in _folders(files)}
    return files.images if len(classes) > 1 and '' not in classes else []


def read_classes(files: Files, found: list[Path], faults: Faults) -> Found:
    """Take the topmost folder, or the one below the folders of the parts, for the class of an image."""
    classes = sorted({name for _, name in _folders(files)})
    parts: dict[str, list[tuple[Path, int]]] = {}
    for path, (part, name) in zip(found, _folders(files)):
        parts.setdefault(part, []).append((path, classes.index(name)))
    return Found('class folders', 'classes', classes, parts)


def _folders(files: Files) -> list[tuple[str, str]]:
    """Return part and class of each image as its folders say, without those that all images are in."""
    folders = [path.parts[:-1] for path in files.images]
    common = 0
    while all(len(names) > common for names in folders) and len({n[common] for n in folders}) == 1:
        common += 1
    below = [(*names[common:], '', '') for names in folders]
    parts = [part_of(names[0]) for names in below]
    deeper = next((names for names in below if names[0] and part_of(names[1])), None)
    if deeper and not any(parts):
        one = files.root.joinpath(*folders[0][:common], deeper[0])
        raise ImageSetError(f'{files.root} has several data sets in it: name one, e.g. {one}.')
    if all(parts):
        return [(str(part), names[1]) for part, names in zip(parts, below)]
    return [('train', names[0]) for names in below]


def _paired(files: Files, masks: list[Path]) -> dict[Path, Path]:
    """Return label maps by image; their names may have an ending of their own, e.g. `_mask`."""
    images = {key_of(path): path for path in files.images if not _is_mask(path)}
    stems = {key[-1] for key in images}
    ends: Counter[str] = Counter()
    for path in masks:
        cuts = (end for end in range(len(path.stem), 0, -1) if path.stem[:end] in stems)
        ends.update(path.stem[end:] for end in list(cuts)[:1])
    end = ends.most_common(1)[0][0] if ends else ''
    keys = ((key_of(path, end), path) for path in masks)
    return {images[key]: path for key, path in keys if key in images}


def _is_mask(path: Path) -> bool:
    return any(_MASK_FOLDER.search(folder.lower()) for folder in path.parts[:-1])


def _class_map(files: Files) -> tuple[list[str], Numbers]:
    """Return names of classes, and the colours of a colour-coded map, from the file that gives them."""
    for path in (path for name in _MAPS for path in files.all if path.name == name):
        lines = [line for line in files.lines(path) if line[0] != '#']
        if path.suffix == '.csv':
            rows = list(csv.reader(lines[1:]))
        else:
            parts = [line.split(':') for line in lines]
            rows = [[name, *(more[0].split(',') if more else [])] for name, *more in parts]
        names = [row[0].strip() for row in rows]
        try:
            colours = {tuple(map(int, row[1:4])): number for number, row in enumerate(rows)}
        except ValueError as broken:
            raise ImageSetError(f'{files.root / path}: {broken}') from broken
        return names, colours if all(len(colour) == 3 for colour in colours) else {}
    return [], {}


def index_map(values: np.ndarray | None, mapping: Numbers | None) -> np.ndarray:
    """Return numbers of classes for `(H, W)` values or `(H, W, C)` colours, which are the numbers without a mapping."""
    values = np.asarray(values)
    by_colour = bool(mapping) and isinstance(next(iter(mapping or {})), tuple)
    if values.ndim == 3 and (values[..., :1] == values[..., :3]).all() and not by_colour:
        values = values[..., 0]
    if mapping is None:
        return np.where(values > IGNORED, IGNORED, values).astype(np.uint8)
    labels = np.full(values.shape[:2], IGNORED, np.uint8)
    for value, number in mapping.items():
        same = values[..., :3] == value if values.ndim == 3 else values == value
        labels[same.all(-1) if same.ndim == 3 else same] = number
    return labels


def _values(path: str, colours: Numbers) -> tuple[str, dict[int, int], bool]:
    """Return what is wrong with a label map, its values and their counts, and whether it is in colours."""
    file, values = read_image(path, whole=True)
    if file.fault or values is None:
        return file.fault or 'cannot be read', {}, False
    if file.lossy:
        return 'are JPEG, whose values are not exact,', {}, False
    if values.ndim == 3:
        if (values[..., :1] != values[..., :3]).any() or colours:
            return '', {}, True
        values = values[..., 0]
    return '', count_values(values), False
