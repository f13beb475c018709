"""Reading image and label files of a data set as far as the checks need it, in threads."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

_THREADS = 8
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Shows how far an iterable is, given its length and a title."""


@dataclass(frozen=True)
class ImageFile:
    """What an image or label file is."""

    path: str
    fault: str = ''  # why it cannot be used, as a clause after a plural; empty if it can
    partial: bool = False  # OpenCV reads the part before a damage and fills the rest
    size: tuple[int, int] = (0, 0)  # width and height as stored; `(0, 0)` if unknown
    mode: str = ''  # of Pillow, or type and channels of files that only OpenCV reads
    lossy: bool = False  # its compression changes values
    sideways: bool = False  # its EXIF orientation swaps width and height
    transparent: bool = False  # it has an alpha channel or a transparent colour


@dataclass(frozen=True)
class Record:
    """A sample of a data set and its files."""

    info: Mapping[str, Any]  # what the data set knows of it
    image: ImageFile | None = None
    label: ImageFile | None = None
    raw: Mapping[int, int] = field(default_factory=dict)  # counts of values in a plain label file
    labels: Mapping[int, int] = field(default_factory=dict)  # the same after the loading
    shape: tuple[int, ...] = ()  # of the loaded label map


def read_records(
    dataset: Any, indices: list[int], loading: Any, progress: Progress, title: str
) -> list[Record]:
    """Read the files of samples of a data set; `loading` is the transform that loads label maps, or None."""
    infos = [
        {key: value for key, value in data_info(dataset, index).items() if key != 'instances'}
        for index in indices
    ]
    backend = getattr(find_step(dataset, 'LoadImageFromFile'), 'imdecode_backend', None)
    multiband = find_step(dataset, 'LoadMultibandImage')

    def read(info: Mapping[str, Any]) -> Record:
        path, label_path, image = info.get('img_path'), info.get('seg_map_path'), None
        if is_local(path) and multiband:
            image = _read_multiband(str(path), multiband)
        elif is_local(path):
            image = read_image(str(path), opencv=backend == 'cv2')[0]
        if loading is None or not is_local(label_path):
            return Record(info, image)
        label, values = read_image(str(label_path), whole=True)
        if label.fault:
            return Record(info, image, label)
        loaded = loading({**info, 'seg_fields': []})['gt_seg_map']
        stock = type(loading).__module__.startswith('mmseg.')
        raw = count_values(values) if stock and values is not None and values.ndim == 2 else {}
        labels = count_values(loaded) if loaded.ndim == 2 else {}
        return Record(info, image, label, raw, labels, loaded.shape)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(progress(threads.map(read, infos), len(infos), title))


def read_image(
    path: str, whole: bool = False, opencv: bool = False
) -> tuple[ImageFile, np.ndarray | None]:
    """Return what a file is, and its values if `whole` and if Pillow reads it.

    Without `whole`, a JPEG is decoded at an eighth of its size, which shows as well whether it is complete. With
    `opencv`, OpenCV has to read it, too: it refuses some damage that Pillow repairs.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as missing:
        return ImageFile(path, _why_missing(path, missing)), None
    if not content:
        return ImageFile(path, 'are empty'), None
    known: dict[str, Any] = {}
    values = None
    try:
        with Image.open(io.BytesIO(content)) as image:
            known = dict(
                size=image.size,
                mode=image.mode,
                lossy=image.format in ('JPEG', 'MPO'),
                sideways=is_sideways(image),
                transparent=image.has_transparency_data,
            )
            if whole:
                values = np.asarray(image)
            else:
                image.draft(image.mode, (image.width // 8 + 1, image.height // 8 + 1))
                image.load()
    except Image.DecompressionBombError:
        return ImageFile(path, **known), None  # too large for Pillow's taste
    except Exception as broken:  # decoders raise errors of many kinds on damaged files
        return _read_by_opencv(path, content, known, broken), None
    reducible = known['lossy'] and min(known['size']) >= 8
    flag = cv2.IMREAD_REDUCED_COLOR_8 if reducible else cv2.IMREAD_COLOR
    if opencv and _decode(content, flag) is None:
        return ImageFile(path, 'are damaged or cut off', **known), None
    return ImageFile(path, **known), values


def _read_multiband(path: str, loading: Any) -> ImageFile:
    """Return what an image file is that `LoadMultibandImage` reads."""
    try:
        height, width = loading.transform({'img_path': path})['img_shape']
    except (OSError, ValueError) as error:
        if not Path(path).exists():
            return ImageFile(path, 'do not exist')
        reason = str(error).removeprefix(path).strip()
        return ImageFile(path, f'cannot be read as bands ({reason})')
    return ImageFile(path, size=(width, height))


def _read_by_opencv(
    path: str, content: bytes, known: dict[str, Any], broken: Exception
) -> ImageFile:
    """Return what a file is that Pillow cannot read."""
    image = _decode(content, cv2.IMREAD_UNCHANGED)
    if image is None:
        unknown = isinstance(broken, UnidentifiedImageError)
        fault = 'are not images' if unknown else 'are damaged or cut off'
        return ImageFile(path, fault, **known)
    if known:
        return ImageFile(path, 'are damaged or cut off', partial=True, **known)
    channels = 1 if image.ndim == 2 else image.shape[2]
    mode = f'{image.dtype} with {channels} channels'
    return ImageFile(path, size=image.shape[1::-1], mode=mode, transparent=channels > 3)


def _decode(content: bytes, flag: int) -> Any:
    """Return what OpenCV makes of the content of a file, None if it cannot read it."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:  # too large
        return None


def count_values(values: np.ndarray) -> dict[int, int]:
    """Return the distinct values of an array of whole numbers and their counts."""
    if values.dtype in (np.uint8, bool):  # several times as fast
        counted = np.bincount(values.ravel())
        return {value: int(counted[value]) for value in np.flatnonzero(counted).tolist()}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist()))


def _why_missing(path: str, missing: OSError) -> str:
    """Return why a file cannot be opened, with the name of a similar one beside it."""
    if not isinstance(missing, FileNotFoundError):
        return f'cannot be opened ({missing.strerror})'
    if '\\' in path and Path(path.replace('\\', '/')).is_file():
        return 'do not exist (there are files with / instead of \\ in the name)'
    wanted = _plain(path)
    with suppress(OSError):
        for beside in Path(path).parent.iterdir():
            if _plain(beside) == wanted:
                return f'do not exist (there is {beside.name})'
    return 'do not exist'


def _plain(path: str | Path) -> str:
    return unicodedata.normalize('NFC', Path(path).stem).casefold()


def is_sideways(image: Image.Image) -> bool:
    """Return whether the EXIF orientation of an image swaps width and height."""
    return image.getexif().get(274, 1) in (5, 6, 7, 8)


def is_local(path: Any) -> bool:
    """Return whether a config names a path on this machine."""
    return bool(path) and isinstance(path, str) and '://' not in path


def data_info(dataset: Any, index: int) -> dict[str, Any]:
    """Return what a data set knows of a sample before its pipeline; nothing if it does not say."""
    info: dict[str, Any] = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else {}
    return info


def find_step(dataset: Any, name: str) -> Any:
    """Return the first transform of a kind in the pipeline of a data set, through wrappers, or None."""
    while not hasattr(getattr(dataset, 'pipeline', None), 'transforms'):
        several = getattr(dataset, 'datasets', None) or [None]
        dataset = getattr(dataset, 'dataset', several[0])
        if dataset is None:
            return None
    steps = dataset.pipeline.transforms
    return next((step for step in steps if type(step).__name__ == name), None)
