"""What a user names for a prediction: files, folders, patterns, addresses, videos and cameras."""

from __future__ import annotations

import glob
import signal
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import cv2
import numpy as np
from PIL import Image, ImageOps

from swinv2_mm.engine.console import say
from swinv2_mm.engine.errors import SetupError

IMAGES = ('.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
_LARGEST_DOWNLOAD = 100 << 20
_TIMEOUT = 30.0


class ImageError(SetupError, ValueError):
    """An image cannot be read or prepared; the message names it."""


@dataclass(frozen=True)
class Source:
    """An image by path or address, or a video or camera, and the path of its outputs without suffix."""

    location: str | int
    name: Path
    video: bool = False


def find_sources(inputs: Sequence[str], outputs: Path) -> list[Source]:
    """Return what the inputs mean, each location once: what is below folders, except the folder of the outputs."""
    found: dict[str | int, Source] = {}
    for given in inputs:
        for source in _find(given, outputs.resolve()):
            found.setdefault(source.location, source)
    return list(found.values())


def _find(given: str, outputs: Path) -> list[Source]:
    path = Path(given)
    if '://' in given:
        parts = urlparse(given)
        frames = parts.scheme not in ('http', 'https') or _is_video(Path(parts.path))
        return [Source(given, Path(Path(parts.path).stem or parts.netloc), frames)]
    if given.isdecimal() and not path.exists():
        return [Source(int(given), Path(f'camera{given}'), True)]
    if path.is_dir():
        if outputs == path.resolve():
            raise SetupError(f'The folder {given} is both an input and --out: name another one.')
        found = [
            file
            for file in sorted(path.rglob('*'))
            if file.is_file()
            and not any(part.startswith('.') for part in file.relative_to(path).parts)
            and not file.resolve().is_relative_to(outputs)
        ]
        files = [file for file in found if file.suffix.lower() in IMAGES + VIDEOS]
        others = Counter(file.suffix.lower() or 'without suffix' for file in found)
        kinds = [
            f'{count} {suffix}' for suffix, count in others.items() if suffix not in IMAGES + VIDEOS
        ]
        if files and kinds:
            say(
                f'{given}: files that are neither images nor videos are left out: {", ".join(kinds)}'
            )
        names = [file.relative_to(path).with_suffix('') for file in files]
        missing = f'The folder {given} holds no image or video.'
    else:
        matches = [given] if path.exists() else sorted(glob.glob(given, recursive=True))
        files = [Path(file) for file in matches if Path(file).is_file()]
        names = [Path(file.stem) for file in files]
        what = 'matches no file' if glob.has_magic(given) else 'does not exist'
        missing = f'The input {given} {what}.'
    if not files:
        raise SetupError(missing)
    return [Source(str(file), name, _is_video(file)) for file, name in zip(files, names)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


@contextmanager
def local_file(location: str) -> Iterator[str]:
    """Give the path of an image; one at an address, of at most 100 MiB, is downloaded and removed afterwards."""
    if '://' not in location:
        yield location
        return
    if urlparse(location).scheme not in ('http', 'https'):
        raise OSError('the address must begin with http:// or https://')
    request = urllib.request.Request(location, headers={'User-Agent': 'swinv2-mm'})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        content = answer.read(_LARGEST_DOWNLOAD + 1)
    if len(content) > _LARGEST_DOWNLOAD:
        raise OSError(f'the download has more than {_LARGEST_DOWNLOAD >> 20} MiB')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'image' + Path(urlparse(location).path).suffix)
        file.write_bytes(content)
        yield str(file)


def as_bgr(image: Any) -> np.ndarray:
    """Return a PIL image or an array of uint8 as `(H, W, 3)` in BGR."""
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, 'dtype', type(image).__name__)
        raise TypeError(f'expected a path, a PIL image or an array of uint8, not {kind}')
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f'expected an array (H, W, 3) or (H, W), not {image.shape}')
    return np.ascontiguousarray(image)


class Video:
    """The frames of a video, or of a camera until Ctrl-C, one at a time."""

    def __init__(self, location: str | int) -> None:
        self.live = isinstance(location, int)
        self._capture = cv2.VideoCapture(location)
        if not self._capture.isOpened():
            raise OSError('cannot be opened as a video')
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        if not 1 <= self.fps <= 1000:  # unknown
            self.fps = 30.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames `(H, W, 3)` in BGR."""
        stopped = False

        def stop(*_: object) -> None:
            nonlocal stopped
            stopped = True

        handled = self.live and threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, stop) if handled else None
        try:
            while not stopped:
                found, frame = self._capture.read()
                if not found:
                    break
                yield frame
        finally:
            self._capture.release()
            if handled:
                signal.signal(signal.SIGINT, before)
