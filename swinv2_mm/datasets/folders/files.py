"""The files of a data folder: parts, images and what belongs to an image, and what is found in them."""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from swinv2_mm.datasets.checks.read_files import is_sideways
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.multiband import ARRAY, TIFF, read_bands

T = TypeVar('T')
Content = dict[str, Any]
NO_NAMES = 'The classes have no names: classes.txt beside the data, one name a line, gives them.'
EMPTY = 'annotations that are empty, not finite or outside of the image are left out'
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm', '.npy')
MARKER = 'written_by_new_config.txt'
"""A file in the folders that `new-config` writes; they are no part of the data."""
_PARTS = {
    'train': re.compile(r'(train|training|trn)\d*'),
    'val': re.compile(r'(val|valid|validation|dev)\d*'),
    'test': re.compile(r'(test|testing)\d*'),
}
_ROLE = re.compile(
    r'[-_ ]?(annot(ations?)?|label(map)?s?|masks?|(jpeg)?images?|imgs?|segmentationclass|gt)$'
)
_NAMED = 3
MOST_CLASSES = 10000


def part_of(name: str) -> str | None:
    """Return the part that the name of a folder or file stands for: `'train'`, `'val'`, `'test'` or None."""
    for word in (name.lower(), *re.split(r'[^a-z0-9]+', name.lower())):
        for part, pattern in _PARTS.items():
            if pattern.fullmatch(word):
                return part
    return None


def folder_part(path: Path) -> str | None:
    """Return the part that one of the folders of a path stands for."""
    words = (_ROLE.sub('', folder.lower()) for folder in path.parts[:-1])
    return next((part for word in words if (part := part_of(word))), None)


def key_of(path: Path, end: str = '') -> tuple[str, ...]:
    """Return what image and annotation have in common: folders but `images`, `labels`, ..., and the stem."""
    folders = (_ROLE.sub('', folder.lower()) for folder in path.parts[:-1])
    return (*filter(None, folders), path.stem.removesuffix(end))


class Files:
    """All files below a folder, as sorted paths relative to it; hidden ones are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.all = sorted(_walk(root, set()))
        self.images = [path for path in self.all if path.suffix.lower() in IMAGE_SUFFIXES]
        self.known = frozenset(self.images)
        self._by_key: dict[tuple[str, ...], Path] = {}
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            self._by_key.setdefault(key_of(path), path)
            self._by_stem[path.stem].append(path)

    def ending(self, *suffixes: str) -> list[Path]:
        """Return the files with one of the suffixes."""
        return [path for path in self.all if path.suffix.lower() in suffixes]

    def head(self, path: Path, size: int = 2048) -> bytes:
        """Return the first bytes of a file, none if it cannot be read."""
        try:
            with open(self.root / path, 'rb') as file:
                return file.read(size)
        except OSError:
            return b''

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a text file that are not empty."""
        lines = (self.root / path).read_text(encoding='utf-8-sig').splitlines()
        return [line.strip() for line in lines if line.strip()]

    def image_of(self, annotation: Path) -> Path | None:
        """Return the image with the name of an annotation file: in the same place, else the only one."""
        same = self._by_stem[annotation.stem]
        return self._by_key.get(key_of(annotation)) or (same[0] if len(same) == 1 else None)

    def resolve(self, name: str, near: Path = Path()) -> Path | None:
        """Return the file or folder that a path of another machine means: the longest end of it that is here."""
        parts = [part for part in re.split(r'[\\/]+', name.strip()) if part not in ('', '.', '..')]
        for start in range(len(parts)):
            for base in (near, Path()):
                path = base.joinpath(*parts[start:])
                if (self.root / path).exists():
                    return path
        return None


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files below a folder; links to folders are followed once."""
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen or MARKER in names:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(('.', '__MACOSX'))]
        inside = Path(where).relative_to(folder)
        for name in names:
            # Reading a pipe or a device might never end.
            if not name.startswith('.') and os.path.isfile(os.path.join(where, name)):
                yield inside / name


class Faults:
    """Files and annotations that are left out, by the reason."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = defaultdict(list)

    def add(self, fault: str, item: object) -> None:
        """Note an item that has a fault."""
        self.found[fault].append(str(item))

    @contextmanager
    def guard(self, fault: str, item: object) -> Iterator[None]:
        """Note an item that the block fails on."""
        try:
            yield
        except Exception as broken:  # parsers raise errors of many kinds on damaged files
            reason = ' '.join(str(broken).split()) or type(broken).__name__
            self.add(fault, f'{item} ({reason[:120]})')

    def lines(self) -> Iterator[str]:
        """Yield a sentence about each fault."""
        for fault, items in self.found.items():
            more = f' and {len(items) - _NAMED} more' if len(items) > _NAMED else ''
            text = f'{fault}: {", ".join(items[:_NAMED])}{more}'
            yield text.encode('utf-8', 'backslashreplace').decode()


def image_sizes(root: Path, images: Sequence[Path], faults: Faults) -> dict[Path, tuple[int, int]]:
    """Return width and height of images as OpenCV reads them, rotated by EXIF, without those that are none."""

    def size(path: Path) -> tuple[int, int] | str:
        try:
            with Image.open(root / path) as image:
                return image.size[::-1] if is_sideways(image) else image.size
        except Exception as broken:
            if path.suffix.lower() not in (*TIFF, ARRAY):
                return type(broken).__name__
        try:
            height, width = read_bands(root / path).shape[:2]
            return width, height
        except (OSError, ValueError, ImportError) as broken:
            return str(broken)

    found: dict[Path, tuple[int, int]] = {}
    with ThreadPoolExecutor(8) as threads:
        for path, value in zip(images, threads.map(size, images)):
            if isinstance(value, str):
                faults.add('images that cannot be read are left out', f'{path} ({value})')
            else:
                found[path] = value
    return found


def split_off(items: Iterable[T], share: float) -> tuple[list[T], list[T]]:
    """Return the items to train on and, at random but the same every time, a share of at least one to validate on."""
    items = list(items)
    if len(items) < 2:
        raise ImageSetError('--split needs at least two images (of each class, for class folders).')
    count = min(len(items) - 1, max(1, round(share * len(items))))
    chosen = set(random.Random(0).sample(range(len(items)), count))
    parts: tuple[list[T], list[T]] = ([], [])
    for index, item in enumerate(items):
        parts[index in chosen].append(item)
    return parts


@dataclass
class Found:
    """The data in a folder.

    `parts` has `'train'`, `'val'`, `'test'` as far as they are there. For instances, a COCO json (its path, or its
    content if it is to be written) and the folder of its images; otherwise pairs of an image and its label map or
    class, relative to the folder.
    """

    layout: str
    task: (
        str  # `'instances'` (boxes, masks), `'semantic'` (label maps) or `'classes'` (whole images)
    )
    classes: list[str]
    parts: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what the user should know of the choices
    numbers: dict[Any, int] | None = None  # of classes, by their value or colour in label maps


class CocoWriter:
    """Collects images and annotations as the content of a COCO json for each part; `faults` takes what is left out."""

    def __init__(self, classes: list[str], faults: Faults) -> None:
        self.classes = classes
        self.size = (0, 0)  # width and height of the last image
        self._faults = faults
        self._contents: dict[str, Content] = {}
        self._last: Content = {}

    def image(self, path: Path, size: tuple[int, int], part: str | None = None) -> None:
        """Add an image to a part, by default that of its folder."""
        part = part or folder_part(path) or 'train'
        empty: Content = dict(images=[], annotations=[], categories=[])
        self._last, self.size = self._contents.setdefault(part, empty), size
        number, name = len(self._last['images']) + 1, path.as_posix()
        entry = dict(id=number, file_name=name, width=size[0], height=size[1])
        self._last['images'].append(entry)

    def is_empty(self) -> bool:
        """Return whether the last image has no annotations."""
        images, annotations = self._last['images'], self._last['annotations']
        return not annotations or annotations[-1]['image_id'] != images[-1]['id']

    def drop(self) -> None:
        """Leave out the last image."""
        self._last['images'].pop()

    def label(self, name: str) -> int:
        """Return the number of a class, which is added if it is new."""
        if name not in self.classes:
            self.classes.append(name)
        return self.classes.index(name)

    def add(self, label: int, crowd: bool = False, **geometry: Any) -> None:
        """Add an annotation to the last image; the evaluation ignores a crowd, and `geometry` is for `measured`."""
        image, annotations = self._last['images'][-1], self._last['annotations']
        fields = measured(self.size, **geometry)
        if fields is None:
            self._faults.add(EMPTY, f'one in {image["file_name"]}')
            return
        number = len(annotations) + 1
        entry = dict(id=number, image_id=image['id'], category_id=label + 1, iscrowd=int(crowd))
        annotations.append({**entry, **fields})

    def found(self, layout: str, root: Path, notes: Sequence[str] = ()) -> Found:
        """Return what was collected."""
        for content in self._contents.values():
            content['categories'] = [
                dict(id=index + 1, name=name) for index, name in enumerate(self.classes)
            ]
        parts = {name: (content, root) for name, content in self._contents.items()}
        return Found(layout, 'instances', self.classes, parts, list(notes))


def measured(
    size: tuple[int, int],
    box: Sequence[float] | np.ndarray | None = None,
    polygons: Sequence[Sequence[float]] = (),
    mask: np.ndarray | None = None,
) -> Content | None:
    """Return `bbox`, `area` and `segmentation` of an object as COCO has them, None for one without an area.

    Args:
        size: Width and height of the image, to which the object is cut.
        box: `(x0, y0, x1, y1)` in pixels; by default that of the mask.
        polygons: Flat lists `[x0, y0, x1, y1, ...]`.
        mask: `(H, W)` instead of polygons.
    """
    segmentation: Any = None
    corners: Any = np.full((2, 2), np.nan)
    area = 0.0
    rings: list[Any] = [np.reshape(polygon, (-1, 2)).astype(float) for polygon in polygons]
    rings = [np.clip(ring, 0, size) for ring in rings if np.isfinite(ring).all()]
    rings = [ring for ring in rings if len(ring) > 2 and _area(ring) > 0]
    if mask is not None:
        coded = run_lengths.encode(np.asfortranarray(mask, np.uint8))
        x, y, w, h = run_lengths.toBbox(coded)
        corners, area = np.array([[x, y], [x + w, y + h]]), float(run_lengths.area(coded))
        segmentation = dict(size=coded['size'], counts=coded['counts'].decode())
    elif rings:
        points = np.concatenate(rings)
        corners, area = np.stack([points.min(0), points.max(0)]), sum(map(_area, rings))
        segmentation = [np.round(ring, 2).ravel().tolist() for ring in rings]
    if box is not None:
        corners = np.clip(np.sort(np.asarray(box, float).reshape(2, 2), 0), 0, size)
        area = area if segmentation else float(np.prod(corners[1] - corners[0]))
    # NaN fails, too. Data sets drop boxes of less than a pixel.
    if not ((corners[1] - corners[0]) >= 1).all() or not area > 0:
        return None
    bbox = np.round([*corners[0], *(corners[1] - corners[0])], 2).tolist()
    fields = dict(bbox=bbox, area=round(area, 2))
    return {**fields, 'segmentation': segmentation} if segmentation else fields


def _area(ring: np.ndarray) -> float:
    """Return the area inside a polygon."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
