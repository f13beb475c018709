"""Write a config for a folder of the user's own data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.apis.choices import METHODS, SIZES
from swinv2_mm.apis.config_text import Data, write_text
from swinv2_mm.apis.data_report import report
from swinv2_mm.datasets.checks.configured import class_folders
from swinv2_mm.datasets.checks.read_files import read_image
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders import Faults, Found, read_folder
from swinv2_mm.datasets.folders.coco import split as split_json
from swinv2_mm.datasets.folders.files import MARKER, image_sizes, split_off
from swinv2_mm.datasets.folders.pairs import index_map
from swinv2_mm.datasets.multiband import measure_bands
from swinv2_mm.datasets.staging import staged, write_png
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.launch import guarded

_FITTING = {
    'masks': ('mask-rcnn', 'faster-rcnn'),
    'boxes': ('faster-rcnn',),
    'mixed': ('faster-rcnn',),
    'semantic': ('upernet', 'fpn'),
    'classes': ('',),
}
_WORDS = {
    'masks': 'objects that have masks',
    'boxes': 'objects that have boxes and no masks',
    'mixed': 'objects of which some have no mask',
    'semantic': 'label maps',
    'classes': 'classes of whole images',
}
_SAMPLE = 500
_READ_BY_MMPRETRAIN = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


def new_config(
    folder: str,
    model: str | None = None,
    *,
    out: str | None = None,
    split: float | None = None,
    layout: str | None = None,
    force: bool = False,
) -> int:
    """Recognise the data in a folder and write a config that trains a model on them.

    The arguments are the options of `tools/new_config.py`. Annotations that have to be converted are written
    to a folder beside the config.

    Returns:
        The exit code: 0, 1 after a crash, 2 if training on the data would suffer or nothing was written.
    """

    def run() -> int:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise SetupError(f'The folder {folder} does not exist or is no folder.')
        root = Path(os.path.abspath(root))
        named = re.sub(r'[^A-Za-z0-9-]+', '-', root.name)
        if out or model:  # reading the data may take a while
            _config_paths(out or f'{model}_{named}.py', force)
        try:
            found, faults = read_folder(root, layout)
            _split(found, split, folder)
            kind, data = _data_of(found, root, faults)
        except ImageSetError as wrong:
            raise SetupError(str(wrong)) from wrong
        summary = _summary(found, data, root)
        for line in (summary, *found.notes, *faults.lines()):
            print(line)
        method, size = _chosen(model, kind)
        name = f'{method}_swinv2-{size}'.lstrip('_')
        config, own = _config_paths(out or f'{name}_{named}.py', force)
        try:
            config.parent.mkdir(parents=True, exist_ok=True)
            data.parts = _write_data(found, root, own)
            data.parts.setdefault('test', data.parts['val'])
            title = f'{name}, written by `swinv2-mm new-config`.\n{summary}'
            config.write_text(write_text(method, size, data, title), encoding='utf-8')
        except OSError as failed:
            raise SetupError(
                f'{failed.filename or config} cannot be written ({failed.strerror}).'
            ) from failed
        print(f'written: {config}' + (f' and {own}{os.sep}' if own.exists() else ''))
        code = report(str(config), sample=_SAMPLE)
        done = 'Next' if code == 0 else 'Correct the errors above; then'
        print(
            f'{done}:\n  swinv2-mm check-data {config} --show-dir pictures\n  swinv2-mm train {config}\n'
            f'  swinv2-mm predict PHOTO.jpg --model work_dirs/{config.stem}'
        )
        return code

    return guarded(run)


def _chosen(model: str | None, kind: str) -> tuple[str, str]:
    """Return method and size of a model that fits the data."""
    fitting = _FITTING[kind]
    if model is None:
        return fitting[0], 't'
    names = {
        f'{method}_swinv2-{size}'.lstrip('_'): (method, size)
        for method in METHODS
        for size in SIZES
    }
    some = ', '.join(name for name, (method, _) in names.items() if method in fitting)
    if model not in names:
        raise SetupError(f'--model {model}: there is no such model. For these data: {some}.')
    if names[model][0] not in fitting:
        raise SetupError(
            f'--model {model} does not fit data with {_WORDS[kind]}. Models that do: {some}.'
        )
    return names[model]


def _split(found: Found, share: float | None, folder: str) -> None:
    """Make the parts `train` and `val`."""
    parts = found.parts
    if 'train' not in parts:
        raise SetupError(f'{folder} has no training images, only parts {", ".join(parts)}.')
    if 'val' in parts:
        if share is not None:
            raise SetupError(f'--split {share:g}: {folder} has a validation set already.')
        return
    if share is None:
        raise SetupError(
            f'{folder} has no validation set: --split 0.2 sets a fifth of the training images aside for it.'
        )
    if found.task == 'instances':
        content, images = parts['train']
        train, val = split_json(content, share)
        parts['train'], parts['val'] = (train, images), (val, images)
        return
    groups = [parts['train']]
    if found.task == 'classes':  # the same share of each class
        numbers = range(len(found.classes))
        groups = [[pair for pair in parts['train'] if pair[1] == number] for number in numbers]
    halves = [split_off(group, share) for group in groups if group]
    parts['train'] = [pair for train, _ in halves for pair in train]
    parts['val'] = [pair for _, val in halves for pair in val]


def _data_of(found: Found, root: Path, faults: Faults) -> tuple[str, Data]:
    """Return the kind of the data and what the choices are made from."""
    if found.task != 'instances':
        pairs = found.parts['train']
        some = [image for image, _ in pairs[:: max(1, len(pairs) // _SAMPLE)]]
        sizes = np.array(list(image_sizes(root, some, faults).values()), float)
        if not len(sizes):
            raise SetupError(f'None of the training images in {root} can be read.')
        bands = (
            measure_bands([root / image for image in some]) if found.task == 'semantic' else None
        )
        return found.task, Data(root, found.classes, {}, len(pairs), sizes, bands=bands)
    content = found.parts['train'][0]
    if isinstance(content, Path):
        content = json.loads(content.read_bytes())
    images, objects = content['images'], content.get('annotations', [])
    rows = {image['id']: row for row, image in enumerate(images)}
    used = [
        item
        for item in objects
        if item.get('image_id') in rows and min(item['bbox'][2:]) > 0 and not item.get('iscrowd')
    ]
    if not used or not found.classes:
        raise SetupError(f'The {len(images)} training images in {root} have no objects.')
    bare = sum(not item.get('segmentation') for item in used)
    if 0 < bare < len(used):
        share = f'{bare} of {len(used)} objects have no mask'
        found.notes.append(f'{share}: a Faster R-CNN uses the boxes of all.')
    of_boxes = np.array([rows[item['image_id']] for item in used])
    data = Data(
        root,
        found.classes,
        {},
        len(images),
        np.array([[image['width'], image['height']] for image in images], float),
        np.array([item['bbox'][2:] for item in used], float),
        of_boxes,
        len(images) - len({item.get('image_id') for item in objects} & set(rows)),
        measure_bands([found.parts['train'][1] / image['file_name'] for image in images]),
    )
    return 'mixed' if 0 < bare < len(used) else 'boxes' if bare else 'masks', data


def _config_paths(name: str, force: bool) -> tuple[Path, Path]:
    """Return the config and the folder of its data; nothing is overwritten that this command has not written."""
    config = Path(name)
    own = config.with_name(f'{config.stem}_data')
    if config.suffix != '.py':
        raise SetupError(f'-o {config}: the name of a config ends in .py.')
    if own.exists() and not (own / MARKER).is_file():
        use = 'would hold converted annotations and is something else'
        raise SetupError(f'{own} {use}: name another config with -o.')
    for path in (config, own):
        if path.exists() and not force:
            raise SetupError(f'{path} exists: overwrite it with --force, or name another with -o.')
    return config, own


def _summary(found: Found, data: Data, root: Path) -> str:
    """Return what the data are in a line."""

    def count(part: str) -> int:
        content = found.parts[part]
        if found.task != 'instances':
            return len(content)
        if isinstance(content[0], Path):
            return len(json.loads(content[0].read_bytes())['images'])
        return len(content[0]['images'])

    images = ', '.join(
        f'{part} {count(part)}' for part in ('train', 'val', 'test') if part in found.parts
    )
    names = ', '.join(data.classes[:8]) + (', ...' if len(data.classes) > 8 else '')
    return f'{root}: {found.layout}; images: {images}; classes ({len(data.classes)}): {names}'


def _write_data(found: Found, root: Path, own: Path) -> dict[str, dict[str, Any]]:
    """Write what the data sets cannot read as it is to a folder of its own; return their arguments by part."""
    own = Path(os.path.abspath(own))
    made = dict(instances=_instances, semantic=_semantic, classes=_classes)[found.task](
        found, root, own
    )
    settings: dict[str, dict[str, Any]] = {}
    files: dict[str, Any] = {}
    for part, arguments, written in made:
        settings[part] = arguments
        files.update(written)
    if files:
        with staged(own) as folder:
            for name, content in files.items():
                path = folder / name
                if callable(content):
                    write_png(path, content())
                else:
                    path.write_text(content, encoding='utf-8')
            (folder / MARKER).write_text('Overwritten by `swinv2-mm new-config --force`.\n')
    return settings


Made = Iterator[tuple[str, dict[str, Any], dict[str, Any]]]
"""Part, arguments of its data set, and files to write: their texts, or functions that return a picture."""


def _instances(found: Found, root: Path, own: Path) -> Made:
    for part, (content, images) in found.parts.items():
        prefix = dict(img=_below(images, root, folder=True))
        if isinstance(content, Path):
            yield part, dict(ann_file=_below(content, root), data_prefix=prefix), {}
        else:
            name = f'{part}.json'
            text = json.dumps(content)
            yield part, dict(ann_file=_below(own / name, root), data_prefix=prefix), {name: text}


def _semantic(found: Found, root: Path, own: Path) -> Made:
    pairs = [pair for pairs in found.parts.values() for pair in pairs]
    ends = {(image.suffix, mask.name[len(image.stem) :]) for image, mask in pairs}
    for part, pairs in found.parts.items():
        images, masks = (
            Path(os.path.commonpath([file.parent for file in side])) for side in zip(*pairs)
        )
        image_end, mask_end = next(iter(ends))
        stems = [(image.relative_to(images).with_suffix('')) for image, _ in pairs]
        same = all(mask == masks / f'{stem}{mask_end}' for stem, (_, mask) in zip(stems, pairs))
        name = f'{part}.txt'
        if found.numbers is None and len(ends) == 1 and same:
            prefix = dict(img_path=images.as_posix(), seg_map_path=masks.as_posix())
            arguments = dict(data_prefix=prefix, img_suffix=image_end, seg_map_suffix=mask_end)
            listed = [stem.as_posix() for stem in stems]
            there = sum(path.suffix == image_end for path in (root / images).rglob('*'))
            if there == len(pairs):
                yield part, arguments, {}
                continue
            files: dict[str, Any] = {}
        else:
            prefix = dict(img_path='', seg_map_path=_below(own / 'masks', root))
            arguments = dict(data_prefix=prefix, img_suffix='', seg_map_suffix='.png')
            listed = [image.as_posix() for image, _ in pairs]
            files = {
                f'masks/{image.as_posix()}.png': lambda path=root / mask: index_map(
                    read_image(str(path), whole=True)[1], found.numbers
                )
                for image, mask in pairs
            }
        text = ''.join(f'{line}\n' for line in listed)
        yield part, dict(ann_file=_below(own / name, root), **arguments), {name: text, **files}


def _classes(found: Found, root: Path, own: Path) -> Made:
    for part, pairs in found.parts.items():
        prefixes = {
            Path(*image.parts[: image.parts.index(found.classes[number])])
            for image, number in pairs
        }
        prefix = next(iter(prefixes))
        suffixes = {image.suffix.lower() for image, _ in pairs}
        there = sum(
            path.suffix.lower() in _READ_BY_MMPRETRAIN for path in (root / prefix).rglob('*')
        )
        same = len(prefixes) == 1 and class_folders(root / prefix) == found.classes
        whole = there == len(pairs) and suffixes <= set(_READ_BY_MMPRETRAIN)
        if same and whole and prefix.parts:
            yield part, dict(data_prefix=prefix.as_posix()), {}
            continue
        text = ''.join(f'{image.as_posix()} {number}\n' for image, number in pairs)
        name = f'{part}.txt'
        yield part, dict(ann_file=_below(own / name, root), data_prefix=''), {name: text}


def _below(path: Path, root: Path, folder: bool = False) -> str:
    """Return a path relative to the root of the data if it is in there."""
    path = path.relative_to(root) if path.is_relative_to(root) else path
    return '' if path == Path() else path.as_posix() + ('/' if folder else '')
