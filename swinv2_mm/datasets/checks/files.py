"""Faults of image and label files, seen in a sample of each part or in all of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding, Severity, Things
from swinv2_mm.datasets.checks.read_files import ImageFile, Record

_DEEP = ('I', 'F', 'uint16', 'float')
"""Beginnings of modes with more than 8 bits."""
_EXTREME_RATIO = 20
"""Ratio of the sides from which an image loses its short side when it is resized."""
_SMALLEST_SIDE = 4
_IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
_IGNORED = 255
"""The label that mmseg's loading leaves for pixels that are not trained on."""
_KINDS = {'do not exist': 'missing', 'are empty': 'empty', 'are not images': 'no-image'}


def check_images(data: ConfiguredData) -> Iterator[Finding]:
    """Find image files that are missing, broken, of another size than annotated, or lose something when read."""
    for part in data.parts:
        place, rotates = f'{part}_dataloader.dataset', data.rotates_by_exif(part)
        records = [record for record in data.records(part) if record.image]
        files: list[Any] = [record.image for record in records]
        yield from _broken(files, 'image', place)
        infos = [record.info for record, file in zip(records, files) if min(file.size)]
        files = [file for file in files if min(file.size)]
        paths = [file.path for file in files]
        find = Things(place, f'image files read of {place}', paths).find
        if rotates is not None:
            sizes = [(info.get('width'), info.get('height')) for info in infos]
            other = [
                None not in size and size != _read_size(file, rotates)
                for size, file in zip(sizes, files)
            ]
            stored = [size == file.size for size, file in zip(sizes, files)]
            unrotated = [differs and same for differs, same in zip(other, stored)]
            fault = (
                'are rotated by EXIF when read, and their annotations are for the unrotated ones'
            )
            remedy = (
                "Set color_type='color_ignore_orientation' in LoadImageFromFile, or rotate the pixels and export "
                'anew.'
            )
            yield from find('error', 'image-exif', unrotated, fault, remedy)
            resized = [differs and not same for differs, same in zip(other, stored)]
            fault = 'have another width and height than the annotation file says'
            remedy = 'Annotations of resized or replaced images do not fit: export them anew.'
            yield from find('error', 'image-size', resized, fault, remedy)
        cmyk = [file.mode == 'CMYK' for file in files]
        fault = 'are CMYK, whose colours depend on the reader'
        yield from find('warning', 'image-cmyk', cmyk, fault, 'Convert them to RGB.')
        deep = [file.mode.startswith(_DEEP) for file in files]
        fault = (
            'have more than 8 bits, of which the reader keeps 8: 12-bit images become almost black'
        )
        remedy = "Convert them to 8 bits, or set color_type='unchanged' in LoadImageFromFile."
        yield from find('warning', 'image-16-bit', deep, fault, remedy)
        transparent = [file.transparent for file in files]
        fault = 'have an alpha channel or extra bands, which the reader drops'
        yield from find('warning', 'image-channels', transparent, fault)
        tiny = [max(file.size) < _SMALLEST_SIDE for file in files]
        fault = f'are smaller than {_SMALLEST_SIDE} pixels'
        yield from find('warning', 'image-tiny', tiny, fault)
        long = [max(file.size) > _EXTREME_RATIO * min(file.size) for file in files]
        fault = f'have sides of a ratio above {_EXTREME_RATIO}: resizing leaves little of the shorter one'
        yield from find('warning', 'image-ratio', long, fault)


def check_suffixes(data: ConfiguredData) -> Iterator[Finding]:
    """Find images in a segmentor's folder that are passed over because of their suffix."""
    for leaf in data.leaves():
        folder, suffix = leaf.folders.get('img_path'), data.setting(leaf, 'img_suffix')
        if data.scope != 'mmseg' or not suffix or not folder or leaf.ann_file:
            continue
        names = [name for _, _, names in os.walk(folder) for name in names]
        images = [n for n in names if os.path.splitext(n)[1].lower() in _IMAGE_SUFFIXES]
        passed = [not name.endswith(suffix) for name in images]
        fault = f'do not end in img_suffix={suffix!r} and are passed over'
        remedy = f'Set {leaf.place}.img_suffix, or convert them to one format.'
        things = Things(folder, f'images in {folder}', images)
        yield from things.find(None, 'image-suffix', passed, fault, remedy)


def check_labels(data: ConfiguredData) -> Iterator[Finding]:
    """Find label files of a segmentor that are missing, broken, of another size or kind, or with wrong values."""
    num_classes = data.segmentation_classes
    for part in data.parts if num_classes else ():
        records = [record for record in data.records(part) if record.label]
        files: list[Any] = [record.label for record in records]
        found = [*_broken(files, 'label', f'{part}_dataloader.dataset')]
        whole = [record for record in records if record.shape]
        found += _label_faults(data, part, whole, num_classes)
        yield from found
        if whole and not any(finding.severity == 'error' for finding in found):
            yield from _sums(data, part, whole, num_classes)


def _label_faults(
    data: ConfiguredData, part: str, records: list[Any], num_classes: int
) -> Iterator[Finding]:
    """Yield the faults of single label files."""
    place, paths = f'{part}_dataloader.dataset', [record.label.path for record in records]
    find = Things(place, f'label files read of {place}', paths).find
    coloured = [len(record.shape) != 2 for record in records]
    fault = 'have several channels: expected one channel that holds class numbers, not colours'
    yield from find('error', 'label-channels', coloured, fault)
    rotates = data.rotates_by_exif(part)
    sizes = [record.image and _read_size(record.image, rotates) for record in records]
    other = [
        len(record.shape) == 2 and size not in (None, (0, 0), record.shape[::-1])
        for record, size in zip(records, sizes)
    ]
    yield from find('error', 'label-size', other, 'have another size than their images')
    deep = [max(record.raw, default=0) > 255 for record in records]
    fault = 'hold numbers above 255, of which the reader keeps the remainder: 256 becomes 0'
    yield from find('error', 'label-16-bit', deep, fault, 'Write the labels as 8-bit numbers.')
    lossy = [bool(record.raw) and record.label.lossy for record in records]
    fault = 'are JPEG, which changes class numbers at edges'
    yield from find('error', 'label-lossy', lossy, fault, 'Write the labels as PNG.')
    known = {*range(num_classes), _IGNORED, getattr(data.dataset(part), 'ignore_index', _IGNORED)}
    outside = [record.labels.keys() - known for record in records]
    values = sorted(set().union(*outside))
    shown = ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
    reduced = any(record.info.get('reduce_zero_label') for record in records)
    fault = (
        f'hold the labels [{shown}]{" (after reduce_zero_label took 1 off)" if reduced else ""}: expected 0 to '
        f'{num_classes - 1} for num_classes={num_classes}, and {_IGNORED} for pixels to ignore'
    )
    remedy = 'Set num_classes and the classes of the data set'
    remedy += '.' if reduced else ', or reduce_zero_label=True if 0 means unlabelled.'
    wrong = [bool(values) and not large for values, large in zip(outside, deep)]
    yield from find('error', 'label-range', wrong, fault, remedy)


def _sums(
    data: ConfiguredData, part: str, records: list[Record], num_classes: int
) -> Iterator[Finding]:
    """Yield what the labels of all files together tell."""
    place, classes = f'{part}_dataloader.dataset', range(num_classes)
    raw, labels = total([r.raw for r in records]), total([r.labels for r in records])
    of = f'{len(records)} label files read of {place}'
    reduced = any(record.info.get('reduce_zero_label') for record in records)
    if not reduced and set(labels) == {0, _IGNORED} == set(raw) and num_classes > 1:
        sentence = (
            f'{of} hold only 0 and 255, and 255 means ignored: one class is all that is trained.'
        )
        remedy = 'Write masks with 0 for the background and 1 for the object.'
        yield Finding('error', place, sentence, remedy, 'label-0-255')
    elif reduced and set(raw) - {_IGNORED} == set(classes):
        sentence = (
            f'{of} hold the labels 0 to {num_classes - 1}, and reduce_zero_label=True turns 0 into ignored: the last '
            'class is not in any file.'
        )
        remedy = 'Set reduce_zero_label=False, in the data set and in LoadAnnotations.'
        yield Finding('error', place, sentence, remedy, 'label-reduced')
    elif not any(labels[value] for value in classes):
        sentence = f'No label of {of} reaches the model: every pixel is ignored ({_IGNORED}).'
        remedy = 'Check the label files and reduce_zero_label.'
        yield Finding('error', place, sentence, remedy, 'label-ignored')
    else:
        names = (getattr(data.dataset(part), 'metainfo', None) or {}).get('classes') or classes
        unused = [not labels[value] for value in range(len(names))]
        find = Things(place, 'classes', names).find
        yield from find('warning', 'class-unused', unused, f'are in none of {of}')
    if any(record.info.get('label_map') for record in records):
        lost = labels[_IGNORED] - raw[_IGNORED] - (raw[0] if reduced else 0)
        if lost > 0:
            share = lost / sum(labels.values())
            sentence = f'{place} uses some of the classes, and pixels of the others are ignored, not background '
            sentence += f'({share:.0%} of the pixels of {of}).'
            yield Finding('warning', place, sentence, kind='label-subset')


def total(counts: list[Any]) -> Counter[Any]:
    """Return the sum of counts by value."""
    summed: Counter[Any] = Counter()
    for one in counts:
        summed.update(one)
    return summed


def _broken(files: list[ImageFile], noun: str, place: str) -> Iterator[Finding]:
    """Yield the faults of files that cannot be read, each kind once; `noun` is `'image'` or `'label'`."""
    paths = [file.path for file in files]
    for fault, partial in dict.fromkeys((f.fault, f.partial) for f in files if f.fault):
        same = [(file.fault, file.partial) == (fault, partial) for file in files]
        things = Things(paths[same.index(True)], f'{noun} files read of {place}', paths)
        severity: Severity | None = None if partial and noun == 'image' else 'error'
        kind = f'{noun}-{_KINDS.get(fault.split("(")[0].strip(), "broken")}'
        fault += ': the rest is filled with grey' if partial else ''
        yield from things.find(
            severity, kind, same, fault, 'Replace them or take them out of the set.'
        )


def _read_size(image: Any, rotates: bool | None) -> tuple[int, int]:
    """Return width and height of an image as the pipeline reads it."""
    width, height = image.size
    return (height, width) if rotates and image.sideways else (width, height)
