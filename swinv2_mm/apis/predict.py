"""The command `predict`: pictures, label maps, json and csv of many images and videos."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from swinv2_mm.apis.inputs import ImageError, Source, Video, find_sources
from swinv2_mm.apis.pictures import picture_suffix, write, write_labels
from swinv2_mm.apis.predictor import LoadedImage, Predictor
from swinv2_mm.apis.results import Prediction
from swinv2_mm.apis.tiles import detect_raster, open_raster, segment_raster
from swinv2_mm.engine.console import say, warn
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.interrupts import raise_interrupts
from swinv2_mm.engine.launch import EXIT_OK, EXIT_SETUP, guarded
from swinv2_mm.ops.linear import constant_weights

_COLUMNS = {
    'mmdet': ('file', 'frame', 'class', 'category_id', 'score', 'x1', 'y1', 'x2', 'y2'),
    'mmseg': ('file', 'frame', 'class', 'category_id', 'pixels', 'share'),
    'mmpretrain': ('file', 'frame', 'class', 'category_id', 'score'),
}


def predict(
    inputs: Sequence[str],
    model: str,
    *,
    out: str = 'predictions',
    json_file: str | None = None,
    csv_file: str | None = None,
    pictures: bool = True,
    trust_checkpoint: bool = False,
    **options: Any,
) -> int:
    """Predict on images and videos and write the results.

    The arguments are the options of `tools/predict.py`; `options` are those of `Predictor`.

    Returns:
        The exit code: 0; 2 if something outside the program is wrong, or no input could be predicted; 1; 130.
    """

    def run() -> int:
        raise_interrupts()  # files are closed before the process ends
        sources = find_sources(inputs, Path(out))
        predictor = Predictor(model, **options)
        classes = len(predictor.categories.names)
        say(f'model: {predictor.model.checkpoint}, {classes} class{"es" * (classes > 1)}')
        with ExitStack() as stack:
            stack.enter_context(constant_weights())
            outputs = _Outputs(stack, predictor, sources, Path(out), json_file, csv_file, pictures)
            done, failed, elapsed = _predict_all(predictor, sources, outputs)
        speed = f', {done / elapsed:.1f} images/s' if done else ''
        say(f'{done} image{"s" * (done != 1)}{speed}; {failed} of {len(sources)} inputs failed')
        for written in outputs.written():
            say(written)
        return EXIT_SETUP if failed == len(sources) else EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def _predict_all(
    predictor: Predictor, sources: list[Source], outputs: _Outputs
) -> tuple[int, int, float]:
    """Return the number of images or frames, the number of inputs that failed, and the seconds they took."""
    started = time.monotonic()
    failed = 0
    waiting: list[tuple[Source, LoadedImage]] = []

    with tqdm(total=len(sources), unit=' images', disable=None) as bar:

        def finish() -> None:
            for (source, _), prediction in zip(
                waiting, predictor.predict([image for _, image in waiting])
            ):
                outputs.add(source, prediction)
                bar.update()
            waiting.clear()

        for source in sources:
            try:
                if source.video:
                    finish()
                    bar.total = None
                    try:
                        for index, (fps, prediction) in enumerate(_frames(predictor, source)):
                            outputs.add(source, prediction, index, fps)
                            bar.update()
                    finally:
                        outputs.end_video()
                elif raster := open_raster(source.location, predictor):
                    finish()
                    with raster:
                        outputs.add_raster(source, raster, predictor)
                    bar.update()
                else:
                    waiting.append((source, predictor.load(source.location)))
                    if len(waiting) == predictor.batch:
                        finish()
            except (ImageError, OSError) as error:
                failed += 1
                text = str(error)
                named = str(source.location)
                bar.clear()
                warn(f'passed over: {text if named in text else f"{named}: {text}"}')
        finish()
    return outputs.count, failed, time.monotonic() - started


def _frames(predictor: Predictor, source: Source) -> Iterator[tuple[float, Prediction]]:
    """Yield frames per second and the predictions for the frames of a video."""
    video = Video(source.location)
    empty = True
    for prediction in predictor.stream(video):
        empty = False
        yield video.fps, prediction
    if empty:
        raise OSError('holds no frame that can be read')


class _Outputs:
    """The files that are written for the predictions, one after another.

    The json is written as the predictions come, so that it takes no memory.
    """

    def __init__(
        self,
        stack: ExitStack,
        predictor: Predictor,
        sources: list[Source],
        folder: Path,
        json_file: str | None,
        csv_file: str | None,
        pictures: bool,
    ) -> None:
        self.count = 0
        self._folder, self._pictures = folder, pictures
        self._labels = predictor.scope == 'mmseg'
        self._categories = predictor.categories
        self._images: list[dict[str, Any]] = []
        self._annotations = 0
        self._taken = {os.path.realpath(str(source.location)) for source in sources}
        self._sink: Any = None
        self._stack = stack
        self._files = [file for file in (json_file, csv_file) if file]
        for file in self._files:
            if os.path.realpath(file) in self._taken:
                raise SetupError(f'{file} is an input: name another file for the output.')
        self._json = self._table = None
        if pictures or self._labels:
            _make_folder(folder)
        if json_file:
            self._json = stack.enter_context(_create(json_file))
            self._json.write('{"annotations": [')
            stack.callback(self._end_json)
        if csv_file:
            file = stack.enter_context(_create(csv_file))
            self._table = csv.DictWriter(file, _COLUMNS[predictor.scope])
            self._table.writeheader()

    def add(
        self, source: Source, prediction: Prediction, frame: int | None = None, fps: float = 0.0
    ) -> None:
        """Write the prediction for an image, or for a frame of a video."""
        height, width = prediction.image.shape[:2]
        self.add_results(source, (height, width), prediction, frame)
        try:
            if self._labels and frame is None:
                write_labels(self.path('labels' / source.name, '.png'), prediction)
            if self._pictures and frame is None:
                picture = prediction.plot()
                write(self.path(source.name, picture_suffix(picture)), picture)
            elif self._pictures:
                self._add_frame(source, prediction.plot(), fps)
        except OSError as error:
            raise SetupError(
                f'{self._folder} cannot be written: {error.strerror or error}.'
            ) from error

    def add_raster(self, source: Source, raster: Any, predictor: Predictor) -> None:
        """Predict on a large TIFF file: objects into json and csv, labels into a TIFF file."""
        shape = (raster.height, raster.width)
        if self._labels:
            segment_raster(raster, predictor, self.path('labels' / source.name, '.tif'))
            self.add_results(source, shape, None)
        else:
            found = detect_raster(raster, predictor, str(source.location))
            self.add_results(source, shape, found)

    def add_results(
        self,
        source: Source,
        shape: tuple[int, int],
        prediction: Prediction | None,
        frame: int | None = None,
    ) -> None:
        """Write json and csv."""
        self.count += 1
        numbered = {} if frame is None else {'frame': frame}
        if self._json:
            image = dict(id=self.count, file_name=str(source.location), **numbered)
            self._images.append(dict(image, width=shape[1], height=shape[0]))
            for result in prediction.to_coco(self.count) if prediction else ():
                self._annotations += 1
                comma = ',\n' if self._annotations > 1 else '\n'
                result = {'id': self._annotations, **result, 'iscrowd': 0}
                self._json.write(comma + json.dumps(result))
        if self._table and prediction:
            for row in prediction.rows():
                self._table.writerow({'file': source.location, **numbered, **row})

    def path(self, name: Path, suffix: str) -> Path:
        """Return a path for an output that is neither an input nor another output of this run."""
        number = 1
        while True:
            stem = name.name if number == 1 else f'{name.name}_{number}'
            path = self._folder / name.with_name(stem + suffix)
            if os.path.realpath(path) not in self._taken:
                self._taken.add(os.path.realpath(path))
                path.parent.mkdir(parents=True, exist_ok=True)
                return path
            number += 1

    def _add_frame(self, source: Source, picture: np.ndarray, fps: float) -> None:
        """Append a frame to the video that is being written."""
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # encoders need even sides
        if self._sink is None:
            import supervision

            info = supervision.VideoInfo(width=width, height=height, fps=fps)
            path = self.path(source.name, '.mp4')
            self._sink = self._stack.enter_context(supervision.VideoSink(str(path), info))
        self._sink.write_frame(np.ascontiguousarray(picture[:height, :width]))

    def end_video(self) -> None:
        """Finish the video that is being written."""
        if self._sink is not None:
            self._sink.__exit__(None, None, None)
            self._sink = None

    def _end_json(self) -> None:
        assert self._json is not None
        rest = {'images': self._images, 'categories': self._categories.as_coco()}
        self._json.write('\n],\n' + json.dumps(rest)[1:] + '\n')

    def written(self) -> Iterator[str]:
        """Yield what was written, in words."""
        if self.count and (self._pictures or self._labels):
            kinds = [
                word for word, on in (('pictures', self._pictures), ('labels', self._labels)) if on
            ]
            yield f'{" and ".join(kinds)}: {self._folder}'
        for file in self._files:
            yield f'predictions: {file}'


def _create(path: str) -> Any:
    """Open a text file for writing, and create its folder."""
    _make_folder(Path(path).parent)
    try:
        return open(path, 'w', encoding='utf-8', newline='')
    except OSError as error:
        raise SetupError(f'{path} cannot be written: {error.strerror}.') from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f'The folder {path} cannot be created: {error.strerror}.') from error
