"""What is found in a data folder, in the form that data sets read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from swinv2_mm.datasets.folders.files import Faults

Content = dict[str, Any]
NO_NAMES = 'The classes have no names: classes.txt beside the data, one name a line, gives them.'


@dataclass
class Found:
    """The data in a folder.

    Attributes:
        layout: Name of the layout.
        task: `'instances'` (boxes, masks), `'semantic'` (label maps) or `'classes'` (whole images).
        classes: Names of the classes.
        parts: `'train'`, `'val'`, `'test'` as far as they are there. For instances, a COCO json (its path, or its
            content if it is to be written) and the folder of its images; otherwise pairs of an image and its label
            map or class, relative to the folder.
        notes: What the user should know of the choices.
        numbers: Numbers of the classes by the value or the colour that they have in label maps, None if the values
            are the numbers.
    """

    layout: str
    task: str
    classes: list[str]
    parts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    numbers: dict[Any, int] | None = None


class CocoWriter:
    """Collects images and annotations of one part as the content of a COCO json.

    Args:
        classes: Names of the classes, which are extended by `label`.
        faults: Takes annotations that are left out.
    """

    def __init__(self, classes: list[str], faults: Faults) -> None:
        self.content: Content = dict(images=[], annotations=[], categories=[])
        self.classes = classes
        self._faults = faults

    def image(self, path: Path, size: tuple[int, int]) -> Content:
        """Add an image and return its entry."""
        number = len(self.content['images']) + 1
        entry = dict(id=number, file_name=path.as_posix(), width=size[0], height=size[1])
        self.content['images'].append(entry)
        return entry

    def label(self, name: str) -> int:
        """Return the number of a class, which is added if it is new."""
        if name not in self.classes:
            self.classes.append(name)
        return self.classes.index(name)

    def add(
        self,
        image: Content,
        label: int,
        box: Sequence[float] | np.ndarray | None = None,
        polygons: Sequence[Sequence[float]] = (),
        mask: np.ndarray | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an annotation to an image.

        Args:
            image: Entry of the image.
            label: Number of the class.
            box: `(x0, y0, x1, y1)` in pixels; by default that of the mask.
            polygons: Flat lists `[x0, y0, x1, y1, ...]`.
            mask: `(H, W)` instead of polygons.
            crowd: Whether to ignore it in training and evaluation.
        """
        size = np.array([image['width'], image['height']], float)
        segmentation: Any = None
        if mask is not None:
            coded = run_lengths.encode(np.asfortranarray(mask, np.uint8))
            x, y, w, h = run_lengths.toBbox(coded)
            corners = np.array([[x, y], [x + w, y + h]])
            area = float(run_lengths.area(coded))
            segmentation = dict(size=coded['size'], counts=coded['counts'].decode())
        elif polygons:
            rings: list[Any] = [np.reshape(polygon, (-1, 2)).astype(float) for polygon in polygons]
            rings = [np.clip(ring, 0, size) for ring in rings if np.isfinite(ring).all()]
            rings = [ring for ring in rings if len(ring) > 2 and _area(ring) > 0]
            if rings:
                points = np.concatenate(rings)
                corners = np.stack([points.min(0), points.max(0)])
                segmentation = [np.round(ring, 2).ravel().tolist() for ring in rings]
            area = sum(map(_area, rings))
        if box is not None:
            given = np.sort(np.asarray(box, float).reshape(2, 2), 0)
            corners = np.clip(given, 0, size)
            area = area if segmentation else float(np.prod(corners[1] - corners[0]))
        elif not segmentation:
            corners = np.full((2, 2), np.nan)
        # NaN fails, too. Data sets drop boxes of less than a pixel.
        if not ((corners[1] - corners[0]) >= 1).all() or not area > 0:
            fault = 'annotations that are empty, not finite or outside of the image are left out'
            self._faults.add(fault, f'one in {image["file_name"]}')
            return
        entry = dict(
            id=len(self.content['annotations']) + 1,
            image_id=image['id'],
            category_id=label + 1,
            bbox=np.round([*corners[0], *(corners[1] - corners[0])], 2).tolist(),
            area=round(area, 2),
            iscrowd=int(crowd),
        )
        if segmentation:
            entry['segmentation'] = segmentation
        self.content['annotations'].append(entry)


def finish(
    layout: str, classes: list[str], writers: dict[str, CocoWriter], root: Path, **more: Any
) -> Found:
    """Return what the writers of the parts have collected."""
    for writer in writers.values():
        writer.content['categories'] = [
            dict(id=index + 1, name=name) for index, name in enumerate(classes)
        ]
    parts = {name: (writer.content, root) for name, writer in writers.items()}
    return Found(layout, 'instances', classes, parts, **more)


def _area(ring: np.ndarray) -> float:
    """Return the area inside a polygon."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
