"""The two ways in which Places365-Standard is laid out on disk.

The download with "easy directory structure" has one folder per class, `{train,val}/<class>/*.jpg`. The other one has
lists of files: `places365_{train_standard,val}.txt`, with one `path label` per line, `categories_places365.txt`
with one `/letter/class label` per line, and the pictures in `data_256` (or `data_large`) and `val_256`
(`val_large`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swinv2_mm.datasets.errors import ImageSetError

PLACES365_LISTS = {'train': 'places365_train_standard.txt', 'val': 'places365_val.txt'}
PLACES365_FOLDERS = {
    'train': ('data_256', 'data_256_standard', 'train_256', 'data_large', 'data_large_standard'),
    'val': ('val_256', 'val_large'),
}
PLACES365_CATEGORIES = 'categories_places365.txt'
PLACES365_URL = 'http://data.csail.mit.edu/places/places365/places365standard_easyformat.tar'


@dataclass(frozen=True)
class PlacesSplit:
    """Where a split is."""

    images: Path
    listing: Path | None = None
    """File with `path label` lines relative to `images`; None if each class has a folder of its own."""
    categories: Path | None = None
    """File with the names of the classes, if there is one beside the list."""


def find_places365(root: str | Path, split: str) -> PlacesSplit:
    """Find the split `'train'` or `'val'` of Places365 in the folder `root`.

    Raises:
        ValueError: If there is no such split.
        FileNotFoundError: If it is there in neither layout.
    """
    if split not in PLACES365_LISTS:
        raise ValueError(f"split is {split!r}: Places365 has 'train' and 'val'")
    root = Path(root)
    if (root / split).is_dir() and any(item.is_dir() for item in (root / split).iterdir()):
        return PlacesSplit(root / split)
    # The archive of lists unpacks to a folder of its own where it is given one.
    listing = root / PLACES365_LISTS[split]
    images = [root / name for name in PLACES365_FOLDERS[split] if (root / name).is_dir()]
    if listing.is_file() and images:
        categories = root / PLACES365_CATEGORIES
        return PlacesSplit(images[0], listing, categories if categories.is_file() else None)
    raise FileNotFoundError(f'{root} holds {places365_layout(root, split)} in neither layout')


def places365_layout(root: str | Path, split: str) -> str:
    """Return in words what is expected of a split."""
    folders = ' or '.join(PLACES365_FOLDERS[split][:1] + PLACES365_FOLDERS[split][-1:])
    return (
        f'{root}/{split}/<class>/*.jpg (easy directory structure, {PLACES365_URL}), or '
        f'{root}/{PLACES365_LISTS[split]} with the pictures in {folders}'
    )


def read_listing(path: str | Path) -> list[tuple[str, int]]:
    """Read a list of files.

    Returns:
        Path and label of each picture, without the slash before each path of the official training list.

    Raises:
        ImageSetError: If a line is not `path label`, or there is none.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdigit():
            raise ImageSetError(f'{path}, line {number}: {line[:80]!r}, expected "path label"')
        found.append((name.lstrip('/'), int(label)))
    if not found:
        raise ImageSetError(f'{path} is empty: expected lines "path label"')
    return found


def read_categories(path: str | Path) -> list[str]:
    """Read the names of the classes, in the order of their labels, without their first letter's folder."""
    named = sorted((label, name) for name, label in read_listing(path))
    return [name.split('/', 1)[-1] for _, name in named]
