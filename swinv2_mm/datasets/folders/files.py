"""The files of a data folder: parts, images and what belongs to an image."""

from __future__ import annotations

import mmap
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from PIL import Image

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.multiband import ARRAY, TIFF, read_bands

T = TypeVar('T')
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
_EXIF_ORIENTATION = 274
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
    """All files below a folder, as sorted paths relative to it; hidden ones are left out.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.all = sorted(_walk(root, set()))
        self.images = [path for path in self.all if path.suffix.lower() in IMAGE_SUFFIXES]
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

    def contains(self, path: Path, text: bytes) -> bool:
        """Return whether a file has `text` in it."""
        try:
            with (
                open(self.root / path, 'rb') as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                return content.find(text) >= 0
        except (OSError, ValueError):
            return False

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
                sideways = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
                return image.size[::-1] if sideways else image.size
        except Exception as broken:
            if path.suffix.lower() not in (*TIFF, ARRAY):
                return type(broken).__name__
        try:
            height, width = read_bands(root / path).shape[:2]
            return width, height
        except (OSError, ValueError, ImportError) as broken:
            return str(broken)

    with ThreadPoolExecutor(8) as threads:
        found = dict(zip(images, threads.map(size, images)))
    for path, value in found.items():
        if isinstance(value, str):
            faults.add('images that cannot be read are left out', f'{path} ({value})')
    return {path: value for path, value in found.items() if not isinstance(value, str)}


def split_off(items: Iterable[T], share: float) -> tuple[list[T], list[T]]:
    """Return the items to train on and, at random but the same every time, a share of at least one to validate on.

    Raises:
        ImageSetError: There are not two items.
    """
    items = list(items)
    if len(items) < 2:
        raise ImageSetError('--split needs at least two images (of each class, for class folders).')
    count = min(len(items) - 1, max(1, round(share * len(items))))
    chosen = set(random.Random(0).sample(range(len(items)), count))
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )
