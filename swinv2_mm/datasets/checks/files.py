"""Faults of image and label files, seen in a sample of each part or in all of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding, Severity, if_many, of_many
from swinv2_mm.datasets.checks.read_files import ImageFile, Record

_DEEP = ('I', 'F', 'uint16', 'float')
"""Beginnings of modes with more than 8 bits."""
_EXTREME_RATIO = 20
"""Ratio of the sides from which an image loses its short side when it is resized."""
_SMALLEST_SIDE = 4
_IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
_IGNORED = 255
"""The label that mmseg's loading leaves for pixels that are not trained on."""


@dataclass(frozen=True)
class _Rule:
    """A fault that a file has or has not.

    Attributes:
        kind: Its name.
        severity: None if the number of files decides.
        test: Whether a record has it.
        fault: A clause after the files.
        remedy: What to do about it.
    """

    kind: str
    severity: Severity | None
    test: Callable[[Any], Any]
    fault: str
    remedy: str = ''

    def apply(self, records: list[Record], noun: str, place: str) -> Iterator[Finding]:
        """Yield a finding if records have the fault; `noun` is `'image'` or `'label'`."""
        found = [getattr(record, noun).path for record in records if self.test(record)]
        if found:
            severity = self.severity or if_many(len(found), len(records))
            nouns = f'{noun} files read of {place}'
            yield of_many(
                severity, self.kind, place, found, len(records), nouns, self.fault, self.remedy
            )


_IMAGE_RULES = (
    _Rule(
        'image-cmyk',
        'warning',
        lambda record: record.image.mode == 'CMYK',
        'are CMYK, whose colours depend on the reader',
        'Convert them to RGB.',
    ),
    _Rule(
        'image-16-bit',
        'warning',
        lambda record: record.image.mode.startswith(_DEEP),
        'have more than 8 bits, of which the reader keeps 8: 12-bit images become almost black',
        "Convert them to 8 bits, or set color_type='unchanged' in LoadImageFromFile.",
    ),
    _Rule(
        'image-channels',
        'warning',
        lambda record: record.image.transparent,
        'have an alpha channel or extra bands, which the reader drops',
    ),
    _Rule(
        'image-tiny',
        'warning',
        lambda record: 0 < max(record.image.size) < _SMALLEST_SIDE,
        f'are smaller than {_SMALLEST_SIDE} pixels',
    ),
    _Rule(
        'image-ratio',
        'warning',
        lambda record: max(record.image.size) > _EXTREME_RATIO * min(record.image.size) > 0,
        f'have sides of a ratio above {_EXTREME_RATIO}: resizing leaves little of the shorter one',
    ),
)


def check_images(data: ConfiguredData) -> Iterator[Finding]:
    """Find image files that are missing, broken, of another size than annotated, or lose something when read."""
    for part in data.parts:
        place, rotates = f'{part}_dataloader.dataset', data.rotates_by_exif(part)
        records = [record for record in data.records(part) if record.image]
        yield from _broken(place, records, 'image')

        whole = [record for record in records if record.image and min(record.image.size)]
        rules = _IMAGE_RULES if rotates is None else _size_rules(rotates) + _IMAGE_RULES
        for rule in rules:
            yield from rule.apply(whole, 'image', place)


def _size_rules(rotates: bool) -> tuple[_Rule, ...]:
    """Return the faults of images whose annotations name their size."""

    def other(record: Any) -> bool:
        return _annotated_size(record) not in (None, _read_size(record.image, rotates))

    def unrotated(record: Any) -> bool:
        return other(record) and _annotated_size(record) == record.image.size

    return (
        _Rule(
            'image-exif',
            'error',
            unrotated,
            'are rotated by EXIF when read, and their annotations are for the unrotated ones',
            "Set color_type='color_ignore_orientation' in LoadImageFromFile, or rotate the pixels and export anew.",
        ),
        _Rule(
            'image-size',
            'error',
            lambda record: other(record) and not unrotated(record),
            'have another width and height than the annotation file says',
            'Annotations of resized or replaced images do not fit: export them anew.',
        ),
    )


def check_suffixes(data: ConfiguredData) -> Iterator[Finding]:
    """Find images in a segmentor's folder that are passed over because of their suffix."""
    for leaf in data.leaves():
        folder, suffix = leaf.folders.get('img_path'), data.setting(leaf, 'img_suffix')
        if data.scope != 'mmseg' or not suffix or not folder or leaf.ann_file:
            continue
        names = [name for _, _, names in os.walk(folder) for name in names]
        images = [n for n in names if os.path.splitext(n)[1].lower() in _IMAGE_SUFFIXES]
        passed = [name for name in images if not name.endswith(suffix)]
        if passed:
            yield of_many(
                if_many(len(passed), len(images)),
                'image-suffix',
                folder,
                passed,
                len(images),
                f'images in {folder}',
                f'do not end in img_suffix={suffix!r} and are passed over',
                f'Set {leaf.place}.img_suffix, or convert them to one format.',
            )


def check_labels(data: ConfiguredData) -> Iterator[Finding]:
    """Find label files of a segmentor that are missing, broken, of another size or kind, or with wrong values."""
    head = data.cfg.model.get('decode_head') if data.scope == 'mmseg' else None
    head = head[-1] if isinstance(head, (list, tuple)) else head
    if not head or 'num_classes' not in head:
        return
    for part in data.parts:
        place, rotates = f'{part}_dataloader.dataset', data.rotates_by_exif(part)
        records = [record for record in data.records(part) if record.label]
        found = [*_broken(place, records, 'label')]
        whole = [record for record in records if record.shape]
        for rule in _label_rules(data, part, head['num_classes'], rotates):
            found += rule.apply(whole, 'label', place)
        yield from found
        if whole and not any(finding.severity == 'error' for finding in found):
            yield from _sums(data, part, whole, head['num_classes'])


def _label_rules(
    data: ConfiguredData, part: str, num_classes: int, rotates: bool | None
) -> tuple[_Rule, ...]:
    """Return the faults of single label files."""
    ignored = {_IGNORED, getattr(data.dataset(part), 'ignore_index', _IGNORED)}

    def outside(record: Record) -> list[int]:
        return [
            value
            for value in record.labels
            if not 0 <= value < num_classes and value not in ignored
        ]

    def other(record: Record) -> bool:
        size = record.image and _read_size(record.image, rotates)
        return len(record.shape) == 2 and size not in (None, (0, 0), record.shape[::-1])

    values = sorted({value for record in data.records(part) for value in outside(record)})
    shown = ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
    reduced = any(record.info.get('reduce_zero_label') for record in data.records(part))
    return (
        _Rule(
            'label-channels',
            'error',
            lambda record: len(record.shape) != 2,
            'have several channels: expected one channel that holds class numbers, not colours',
        ),
        _Rule('label-size', 'error', other, 'have another size than their images'),
        _Rule(
            'label-16-bit',
            'error',
            lambda record: max(record.raw, default=0) > 255,
            'hold numbers above 255, of which the reader keeps the remainder: 256 becomes 0',
            'Write the labels as 8-bit numbers.',
        ),
        _Rule(
            'label-lossy',
            'error',
            lambda record: record.raw and record.label.lossy,
            'are JPEG, which changes class numbers at edges',
            'Write the labels as PNG.',
        ),
        _Rule(
            'label-range',
            'error',
            lambda record: outside(record) and max(record.raw, default=0) < 256,
            f'hold the labels [{shown}]{" (after reduce_zero_label took 1 off)" if reduced else ""}: expected 0 to '
            f'{num_classes - 1} for num_classes={num_classes}, and {_IGNORED} for pixels to ignore',
            'Set num_classes and the classes of the data set'
            + ('.' if reduced else ', or reduce_zero_label=True if 0 means unlabelled.'),
        ),
    )


def _sums(
    data: ConfiguredData, part: str, records: list[Record], num_classes: int
) -> Iterator[Finding]:
    """Yield what the labels of all files together tell."""
    place, classes = f'{part}_dataloader.dataset', range(num_classes)
    raw, labels = total([r.raw for r in records]), total([r.labels for r in records])
    of = f'{len(records)} label files read of {place}'
    reduced = any(record.info.get('reduce_zero_label') for record in records)
    trained = sum(count for value, count in labels.items() if value in classes)
    if not reduced and set(labels) == {0, _IGNORED} == set(raw) and num_classes > 1:
        yield _found(
            'label-0-255',
            place,
            f'{of} hold only 0 and 255, and 255 means ignored: one class is all that is trained.',
            'Write masks with 0 for the background and 1 for the object.',
        )
    elif reduced and set(raw) - {_IGNORED} == set(classes):
        yield _found(
            'label-reduced',
            place,
            f'{of} hold the labels 0 to {num_classes - 1}, and reduce_zero_label=True turns 0 into ignored: the last '
            'class is not in any file.',
            'Set reduce_zero_label=False, in the data set and in LoadAnnotations.',
        )
    elif not trained:
        yield _found(
            'label-ignored',
            place,
            f'No label of {of} reaches the model: every pixel is ignored ({_IGNORED}).',
            'Check the label files and reduce_zero_label.',
        )
    else:
        names = (getattr(data.dataset(part), 'metainfo', None) or {}).get('classes') or classes
        unused = [name for value, name in enumerate(names) if not labels[value]]
        if unused:
            fault = f'are in none of {of}'
            yield of_many('warning', 'class-unused', place, unused, num_classes, 'classes', fault)
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


def _broken(place: str, records: list[Record], noun: str) -> Iterator[Finding]:
    """Yield the faults of files that cannot be read, each kind once."""
    files: list[ImageFile] = [getattr(record, noun) for record in records]
    for fault, partial in dict.fromkeys((f.fault, f.partial) for f in files if f.fault):
        found = [file.path for file in files if (file.fault, file.partial) == (fault, partial)]
        yield of_many(
            if_many(len(found), len(files)) if partial and noun == 'image' else 'error',
            f'{noun}-{_KINDS.get(fault.split("(")[0].strip(), "broken")}',
            found[0],
            found,
            len(files),
            f'{noun} files read of {place}',
            fault + (': the rest is filled with grey' if partial else ''),
            'Replace them or take them out of the set.',
        )


_KINDS = {'do not exist': 'missing', 'are empty': 'empty', 'are not images': 'no-image'}


def _found(kind: str, place: str, sentence: str, remedy: str) -> Finding:
    return Finding('error', place, sentence, remedy, kind)


def _annotated_size(record: Record) -> tuple[Any, Any] | None:
    """Return width and height that the annotations name, if they do."""
    info = record.info
    return (info['width'], info['height']) if 'width' in info and 'height' in info else None


def _read_size(image: Any, rotates: bool | None) -> tuple[int, int]:
    """Return width and height of an image as the pipeline reads it."""
    width, height = image.size
    return (height, width) if rotates and image.sideways else (width, height)
