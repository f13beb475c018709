"""Files of annotation tools: LabelMe and Pascal VOC, one file per image, and CVAT for images 1.1, one XML for all."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from defusedxml import ElementTree
from PIL import Image

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders.files import CocoWriter, Faults, Files, Found, image_sizes, part_of

_LABELME_KEYS = re.compile(rb'"(shapes|imagePath|imageData)"\s*:')
_NO_OBJECTS = ('__ignore__', '_background_')
_BAD_FILES = 'annotation files that cannot be read are left out'
_BAD_OBJECTS = 'objects that cannot be used are left out'
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_MOST_PIXELS = 1 << 30


def recognise_labelme(files: Files) -> list[Path]:
    """Return the jsons of single images."""
    return [path for path in files.ending('.json') if _LABELME_KEYS.search(files.head(path))]


def read_labelme(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the annotations; polygons of one label and `group_id` are one object."""
    contents: dict[Path, Any] = {}
    labels: set[str] = set()
    for path in found:
        with faults.guard(_BAD_FILES, path):
            content = json.loads((files.root / path).read_bytes())
            named = files.resolve(str(content.get('imagePath') or ''), path.parent)
            image = named if named in files.known else files.image_of(path)
            if image is None:
                faults.add('annotation files without an image are left out', path)
            else:
                labels.update(str(shape['label']) for shape in content['shapes'])
                contents[image] = content
    _note_others(files.images, contents, faults)
    writer = CocoWriter(sorted(labels.difference(_NO_OBJECTS)), faults)
    for image, size in image_sizes(files.root, list(contents), faults).items():
        content = contents[image]
        sides = [content.get('imageWidth'), content.get('imageHeight')]
        writer.image(image, _declared_size(sides, size))
        groups: dict[Any, list[list[float]]] = defaultdict(list)
        for index, shape in enumerate(content['shapes']):
            with faults.guard('shapes that cannot be used are left out', f'one in {image}'):
                if shape['label'] in _NO_OBJECTS:
                    continue
                label = writer.label(str(shape['label']))
                points = np.array(shape['points'], float).reshape(-1, 2)
                kind = shape.get('shape_type', 'polygon')
                group = shape.get('group_id')
                own = (label, index) if group is None else (label, 'group', group)
                if kind == 'rectangle':
                    writer.add(label, box=[*points.min(0), *points.max(0)])
                elif kind == 'polygon':
                    groups[own].append(points.ravel().tolist())
                elif kind == 'circle':
                    radius = float(np.hypot(*(points[1] - points[0])))
                    groups[own].append(_ellipse(points[0, 0], points[0, 1], radius, radius))
                elif kind == 'mask':
                    png = io.BytesIO(base64.b64decode(shape['mask']))
                    with Image.open(png, formats=['PNG']) as opened:
                        inside = np.asarray(opened.convert('L')) > 0
                    writer.add(label, mask=_placed(inside, points.min(0), writer.size))
                else:
                    faults.add(f'shapes of the kind {kind} are left out', f'one in {image}')
        for (label, *_), polygons in groups.items():
            writer.add(label, polygons=polygons)
    return writer.found('LabelMe', files.root)


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
        with faults.guard(_BAD_FILES, path):
            root = ElementTree.parse(files.root / path).getroot()
            name = root.findtext('filename') or ''
            image = files.image_of(path) or files.resolve(name, path.parent)
            if image not in files.known:
                faults.add('annotation files without an image are left out', path)
            else:
                roots[image] = root
    images = [image for image in files.images if 'Segmentation' not in image.parent.name]
    _note_others(images, roots, faults)
    labels = {item.findtext('name') for root in roots.values() for item in root.iter('object')}
    writer = CocoWriter(sorted(label.strip() for label in labels if label), faults)
    for image, size in image_sizes(files.root, list(roots), faults).items():
        sides = [roots[image].findtext(f'size/{key}') for key in ('width', 'height')]
        writer.image(image, _declared_size(sides, size), listed.get(image.stem))
        for item in roots[image].iter('object'):
            with faults.guard(_BAD_OBJECTS, f'{item.findtext("name")} in {image}'):
                corners = [float(item.findtext(f'bndbox/{key}')) for key in _CORNERS]
                # Numbers of pixels that begin with 1, the last one inside.
                box = np.array(corners) - [1, 1, 0, 0]
                rings = [[float(value.text) - 1 for value in ring] for ring in item.iter('polygon')]
                label = writer.label(item.findtext('name').strip())
                crowd = (item.findtext('difficult') or '0').strip() == '1'
                writer.add(label, crowd, box=box, polygons=rings)
    return writer.found('Pascal VOC', files.root)


def recognise_cvat(files: Files) -> list[Path]:
    """Return the XML files of CVAT."""
    return [path for path in files.ending('.xml') if b'<annotations>' in files.head(path)]


def read_cvat(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the annotations. Images without objects are background."""
    writer = CocoWriter([], faults)
    named: dict[Path, tuple[Any, str | None]] = {}
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
            if name := label.findtext('name'):
                writer.label(name)
        for item in root.findall('image'):
            name, subset = item.get('name', ''), item.get('subset', '')
            image = files.resolve(name, path.parent)
            if image not in files.known:
                image = files.image_of(Path(subset, name))
            if image is None:
                faults.add('images that do not exist are left out', item.get('name'))
            else:
                named[image] = item, part_of(subset) or part_of(path.stem)
    for image, size in image_sizes(files.root, list(named), faults).items():
        item, part = named[image]
        sides = [item.get('width'), item.get('height')]
        writer.image(image, _declared_size(sides, size), part)
        for shape in item:
            with faults.guard(_BAD_OBJECTS, f'{shape.tag} in {image}'):
                if geometry := _geometry(shape, writer.size):
                    writer.add(writer.label(shape.get('label')), **geometry)
                elif shape.tag != 'tag':
                    faults.add(f'shapes of the kind {shape.tag} are left out', f'one in {image}')
    return writer.found('CVAT', files.root)


def _note_others(images: list[Path], known: Iterable[Path], faults: Faults) -> None:
    """Note the images without annotations."""
    for image in images:
        if image not in known:
            faults.add('images without an annotation file are left out', image)


def _geometry(shape: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of `measured` for a shape of CVAT, none for a kind that has no area."""

    def numbers(*keys: str) -> list[float]:
        return [float(shape.get(key)) for key in keys]

    if shape.tag == 'box':
        x0, y0, x1, y1 = numbers('xtl', 'ytl', 'xbr', 'ybr')
        angle = float(shape.get('rotation', 0))
        if not angle:
            return dict(box=[x0, y0, x1, y1])
        corners = cv2.boxPoints((((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0, y1 - y0), angle))
        return dict(box=[*corners.min(0), *corners.max(0)])
    if shape.tag == 'polygon':
        points = shape.get('points').replace(';', ',').split(',')
        return dict(polygons=[[float(value) for value in points]])
    if shape.tag == 'ellipse':
        return dict(polygons=[_ellipse(*numbers('cx', 'cy', 'rx', 'ry'))])
    if shape.tag == 'mask':
        left, top, width, height = map(int, numbers('left', 'top', 'width', 'height'))
        counts = [int(count) for count in shape.get('rle').split(',')]
        if sum(counts) != width * height or width * height > size[0] * size[1]:
            raise ValueError('its run lengths do not fit its size')
        inside = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
        return dict(mask=_placed(inside, (left, top), size))
    return {}


def _placed(inside: np.ndarray, corner: Any, size: tuple[int, int]) -> np.ndarray:
    """Return a mask in the whole image."""
    x, y = map(int, corner)
    mask = np.zeros(size[::-1], np.uint8)
    place = mask[y : y + inside.shape[0], x : x + inside.shape[1]]
    place[:] = inside[: place.shape[0], : place.shape[1]]
    return mask


def _ellipse(cx: float, cy: float, rx: float, ry: float) -> list[float]:
    """Return a polygon of 36 corners for an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points = np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)
    return [float(value) for value in points.ravel()]


def _declared_size(sides: list[Any], found: tuple[int, int]) -> tuple[int, int]:
    """Return the size that an annotation is for, so that the checks see one that differs from the image's."""
    given = [int(side) for side in map(str, sides) if side.strip().isdecimal()]
    fits = len(given) == 2 and 0 < given[0] * given[1] < _MOST_PIXELS
    return (given[0], given[1]) if fits else found
