"""Recognise the layout of a data folder and read it: `read_folder`.

The readers keep polygons as they are written, name what they leave out and go on, and do not load images. (Those of
`supervision` turn every polygon into a bitmap of the whole image, hold all of them, and stop at the first bad line.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.folders import annotation_tools as tools
from swinv2_mm.datasets.folders import coco, pairs, yolo
from swinv2_mm.datasets.folders.files import Faults, Files, Found


class Layout(NamedTuple):
    """A layout of files: how it is recognised and read, and whether only where no other is."""

    words: str
    recognise: Callable[[Files], list[Path]]
    read: Callable[[Files, list[Path], Faults], Found]
    last: bool = False


LAYOUTS = {
    'coco': Layout('COCO json', coco.recognise, coco.read),
    'yolo': Layout('YOLO labels', yolo.recognise, yolo.read),
    'voc': Layout('Pascal VOC xml', tools.recognise_voc, tools.read_voc),
    'labelme': Layout('LabelMe json', tools.recognise_labelme, tools.read_labelme),
    'cvat': Layout('CVAT xml', tools.recognise_cvat, tools.read_cvat),
    'masks': Layout('label maps', pairs.recognise_masks, pairs.read_masks, last=True),
    'classes': Layout('class folders', pairs.recognise_classes, pairs.read_classes, last=True),
}


def read_folder(folder: Path, layout: str | None = None) -> tuple[Found, Faults]:
    """Return the data in a folder, and what was left out of them.

    `layout`, a key of `LAYOUTS`, is needed only where several are in the folder.

    Raises:
        ImageSetError: There are no data in a known layout, or in several.
    """
    files = Files(folder)
    if not files.images:
        raise ImageSetError(f'{folder} has no images in it.')
    seen: dict[str, list[Path]] = {}
    for name in [layout] if layout else LAYOUTS:
        if LAYOUTS[name].last and seen:
            break
        if found := LAYOUTS[name].recognise(files):
            seen[name] = found
    if not seen:
        what = LAYOUTS[layout].words if layout else 'annotations in a known layout'
        raise ImageSetError(
            f'{folder} has {len(files.images)} images and no {what}: docs/your_data.md shows the layouts.'
        )
    if len(seen) > 1:
        listed = ', '.join(f'{LAYOUTS[name].words} ({found[0]})' for name, found in seen.items())
        raise ImageSetError(
            f'{folder} has annotations in {len(seen)} layouts: {listed}. Choose with --layout {"|".join(seen)}.'
        )
    faults = Faults()
    ((name, paths),) = seen.items()
    return LAYOUTS[name].read(files, paths, faults), faults
