"""Pascal VOC, one XML per image, and CVAT for images 1.1, one XML for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from defusedxml import ElementTree

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders.files import Faults, Files, folder_part, image_sizes, part_of
from swinv2_mm.datasets.folders.found import CocoWriter, Found, finish

_BAD_XML = 'annotation files that cannot be read are left out'
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_MOST_PIXELS = 1 << 30
_BAD_OBJECTS = 'objects that cannot be used are left out'


def recognise_voc(files: Files) -> list[Path]:
    """Return the XML files of single images."""
    return [path for path in files.ending('.xml') if b'<annotation>' in files.head(path)]


def read_voc(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the annotations; the lists in `ImageSets/Main`, where they are there, give the parts."""
    listed = {}
    for path in files.ending('.txt'):
        if path.parent.name == 'Main' and (part := part_of(path.stem)) and '_' not in path.stem:
            for line in (files.root / path).read_text(encoding='utf-8').splitlines():
                listed[line.split()[0] if line.strip() else ''] = part
    roots: dict[Path, Any] = {}
    for path in found:
        with faults.guard(_BAD_XML, path):
            root = ElementTree.parse(files.root / path).getroot()
            image = files.image_of(path) or files.resolve(
                root.findtext('filename') or '', path.parent
            )
            if image not in files.images:
                faults.add('annotation files without an image are left out', path)
            else:
                roots[image] = root
    for image in files.images:
        if image not in roots and 'Segmentation' not in image.parent.name:
            faults.add('images without an annotation file are left out', image)
    sizes = image_sizes(files.root, list(roots), faults)
    labels = {item.findtext('name') for root in roots.values() for item in root.iter('object')}
    classes = sorted(label.strip() for label in labels if label)
    writers: dict[str, CocoWriter] = {}
    for image, size in sizes.items():
        part = listed.get(image.stem) or folder_part(image) or 'train'
        writer = writers.setdefault(part, CocoWriter(classes, faults))
        entry = writer.image(image, declared_size(roots[image].find('size'), size))
        for item in roots[image].iter('object'):
            with faults.guard(_BAD_OBJECTS, f'{item.findtext("name")} in {image}'):
                corners = [float(item.findtext(f'bndbox/{key}')) for key in _CORNERS]
                # Numbers of pixels that begin with 1, the last one inside.
                box = np.array(corners) - [1, 1, 0, 0]
                polygons = [
                    [float(value.text) - 1 for value in ring] for ring in item.iter('polygon')
                ]
                crowd = (item.findtext('difficult') or '0').strip() == '1'
                writer.add(
                    entry, writer.label(item.findtext('name').strip()), box, polygons, crowd=crowd
                )
    return finish('Pascal VOC', classes, writers, files.root)


def recognise_cvat(files: Files) -> list[Path]:
    """Return the XML files of CVAT."""
    return [path for path in files.ending('.xml') if b'<annotations>' in files.head(path)]


def read_cvat(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the annotations. Images without objects are background.

    Raises:
        ImageSetError: A file cannot be read, or it is of a video.
    """
    classes: list[str] = []
    named: dict[Path, tuple[Any, str]] = {}
    for path in found:
        try:
            root = ElementTree.parse(files.root / path).getroot()
        except Exception as broken:
            raise ImageSetError(f'{files.root / path} cannot be read: {broken}') from broken
        if root.find('track') is not None:
            raise ImageSetError(
                f'{files.root / path} is of a video: export the task as "CVAT for images 1.1".'
            )
        for label in root.findall('meta//labels/label'):
            if (name := label.findtext('name')) and name not in classes:
                classes.append(name)
        for item in root.findall('image'):
            image = files.resolve(item.get('name', ''), path.parent)
            if image not in files.images:
                image = _only(files, Path(item.get('name', '')), item.get('subset', ''))
            if image is None:
                faults.add('images that do not exist are left out', item.get('name'))
            else:
                subset = part_of(item.get('subset') or '') or part_of(path.stem)
                named[image] = item, subset or folder_part(image) or 'train'
    writers: dict[str, CocoWriter] = {}
    for image, size in image_sizes(files.root, list(named), faults).items():
        item, part = named[image]
        writer = writers.setdefault(part, CocoWriter(classes, faults))
        entry = writer.image(image, declared_size(item, size))
        for shape in item:
            with faults.guard(_BAD_OBJECTS, f'{shape.tag} in {image}'):
                if (geometry := _geometry(shape, entry)) is not None:
                    writer.add(entry, writer.label(shape.get('label')), **geometry)
                elif shape.tag != 'tag':
                    faults.add(f'shapes of the kind {shape.tag} are left out', f'one in {image}')
    return finish('CVAT', classes, writers, files.root)


def _only(files: Files, name: Path, subset: str) -> Path | None:
    """Return the image with this name, in the folder of the subset if there are several."""
    same = [path for path in files.images if path.name == name.name]
    inside = [path for path in same if subset in path.parts] if len(same) > 1 else same
    return inside[0] if len(inside) == 1 else None


def _geometry(shape: Any, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of `CocoWriter.add` for a shape of CVAT, None for a kind that has no area."""

    def numbers(*keys: str) -> list[float]:
        return [float(shape.get(key)) for key in keys]

    if shape.tag == 'box':
        x0, y0, x1, y1 = numbers('xtl', 'ytl', 'xbr', 'ybr')
        angle = float(shape.get('rotation', 0))
        if angle:
            centre = ((x0 + x1) / 2, (y0 + y1) / 2)
            corners = cv2.boxPoints((centre, (x1 - x0, y1 - y0), angle))
            return dict(box=[*corners.min(0), *corners.max(0)])
        return dict(box=[x0, y0, x1, y1])
    if shape.tag == 'polygon':
        points = shape.get('points').replace(';', ',').split(',')
        return dict(polygons=[[float(value) for value in points]])
    if shape.tag == 'ellipse':
        cx, cy, rx, ry = numbers('cx', 'cy', 'rx', 'ry')
        return dict(polygons=[ellipse(cx, cy, rx, ry)])
    if shape.tag == 'mask':
        left, top, width, height = map(int, numbers('left', 'top', 'width', 'height'))
        counts = [int(count) for count in shape.get('rle').split(',')]
        whole = (entry['height'], entry['width'])
        if sum(counts) != width * height or width * height > whole[0] * whole[1]:
            raise ValueError('its run lengths do not fit its size')
        inside = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
        mask = np.zeros(whole, np.uint8)
        mask[top : top + height, left : left + width] = inside
        return dict(mask=mask)
    return None


def ellipse(cx: float, cy: float, rx: float, ry: float) -> list[float]:
    """Return a polygon of 36 corners for an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points = np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)
    return [float(value) for value in points.ravel()]


def declared_size(size: Any, found: tuple[int, int]) -> tuple[int, int]:
    """Return the size that an annotation is for, so that the checks see one that differs from the image's."""
    if size is None:
        return found
    values = [size.get(key) or size.findtext(key) for key in ('width', 'height')]
    given = tuple(int(value) for value in values if value and value.strip().isdecimal())
    return given if len(given) == 2 and 0 < given[0] * given[1] < _MOST_PIXELS else found
