"""LabelMe: one json per image with its polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swinv2_mm.datasets.folders.files import Faults, Files, folder_part, image_sizes
from swinv2_mm.datasets.folders.found import CocoWriter, Found, finish
from swinv2_mm.datasets.folders.xml_files import ellipse

_KEYS = re.compile(rb'"(shapes|imagePath|imageData)"\s*:')


def recognise(files: Files) -> list[Path]:
    """Return the jsons of single images."""
    return [path for path in files.ending('.json') if _KEYS.search(files.head(path))]


def read(files: Files, found: list[Path], faults: Faults) -> Found:
    """Convert the annotations; polygons of one label and `group_id` are one object."""
    contents: dict[Path, Any] = {}
    known = set(files.images)
    labels: set[str] = set()
    for path in found:
        with faults.guard('annotation files that cannot be read are left out', path):
            content = json.loads((files.root / path).read_bytes())
            named = files.resolve(str(content.get('imagePath') or ''), path.parent)
            image = named if named in known else files.image_of(path)
            if image is None:
                faults.add('annotation files without an image are left out', path)
            else:
                labels.update(str(shape['label']) for shape in content['shapes'])
                contents[image] = content
    for image in files.images:
        if image not in contents:
            faults.add('images without an annotation file are left out', image)
    classes = sorted(labels - {'__ignore__', '_background_'})
    writers: dict[str, CocoWriter] = {}
    for image, size in image_sizes(files.root, list(contents), faults).items():
        part = folder_part(image) or 'train'
        writer = writers.setdefault(part, CocoWriter(classes, faults))
        declared = [contents[image].get(key) for key in ('imageWidth', 'imageHeight')]
        if all(type(side) is int and 0 < side < 1 << 15 for side in declared):
            size = (declared[0], declared[1])
        entry = writer.image(image, size)
        groups: dict[Any, list[list[float]]] = defaultdict(list)
        for index, shape in enumerate(contents[image]['shapes']):
            with faults.guard('shapes that cannot be used are left out', f'one in {image}'):
                if shape['label'] in ('__ignore__', '_background_'):
                    continue
                label = classes.index(str(shape['label']))
                points = np.array(shape['points'], float).reshape(-1, 2)
                kind = shape.get('shape_type', 'polygon')
                group = shape.get('group_id')
                own = (label, index) if group is None else (label, 'group', group)
                if kind == 'rectangle':
                    writer.add(entry, label, box=[*points.min(0), *points.max(0)])
                elif kind == 'polygon':
                    groups[own].append(points.ravel().tolist())
                elif kind == 'circle':
                    radius = float(np.hypot(*(points[1] - points[0])))
                    groups[own].append(ellipse(points[0, 0], points[0, 1], radius, radius))
                elif kind == 'mask':
                    writer.add(entry, label, mask=_mask(shape, points, entry))
                else:
                    faults.add(f'shapes of the kind {kind} are left out', f'one in {image}')
        for (label, *_), polygons in groups.items():
            writer.add(entry, label, polygons=polygons)
    return finish('LabelMe', classes, writers, files.root)


def _mask(shape: dict[str, Any], points: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """Return the mask of a shape, a PNG in base64 with the place of its corner, in the whole image."""
    with Image.open(io.BytesIO(base64.b64decode(shape['mask'])), formats=['PNG']) as png:
        inside = np.asarray(png.convert('L')) > 0
    x, y = points.min(0).astype(int)
    mask = np.zeros((entry['height'], entry['width']), np.uint8)
    mask[y : y + inside.shape[0], x : x + inside.shape[1]] = inside[
        : mask.shape[0] - y, : mask.shape[1] - x
    ]
    return mask
