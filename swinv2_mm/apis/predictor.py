"""`Predictor`: a trained model that takes images and returns predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData

from swinv2_mm.apis.inputs import ImageError, as_bgr, local_file
from swinv2_mm.apis.models import load_model
from swinv2_mm.apis.results import Prediction, find_categories, reduces_zero_label
from swinv2_mm.apis.tiles import detect_tiles, segment_tiles
from swinv2_mm.checkpoints import guard_mmengine
from swinv2_mm.engine.console import import_library
from swinv2_mm.engine.devices import autocast
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import tested_data
from swinv2_mm.engine.hooks import return_fp32
from swinv2_mm.ops.winograd import use_winograd

_LARGEST_WHOLE = 64_000_000
"""Pixels above which masks and label maps of a whole image would take many GB."""


@dataclass
class LoadedImage:
    """An image as the loader of the config reads it.

    Args:
        pixels: Array `(H, W, C)` for the model.
        picture: Array `(H, W, 3)` of uint8 in BGR, to draw on.
        path: The path or address, if there is one.
        packed: The output of the test pipeline; None for an image that is predicted by tiles.
    """

    pixels: np.ndarray
    picture: np.ndarray
    path: str | None
    packed: dict[str, Any] | None = None


class Predictor:
    """A trained detector, segmentor or classifier.

    Args:
        model: A work directory, a checkpoint or its URL, or a model of `swinv2_mm.apis.models.load_model`.
        device: A device of torch, or `'auto'`.
        score_thr: Score below which objects of a detector are left out.
        tile: Side in pixels of tiles for larger images; None predicts on whole images. Not for classifiers.
        batch: Number of images or tiles that are predicted at once.
        config: The config file of a checkpoint that has none inside or beside it.
        cfg_options: Strings `KEY=VALUE` that override the config.
        precision: `'fp32'`, `'bf16'` or `'fp16'`, of matrix products and convolutions.

    Raises:
        SetupError: If the model cannot be built, or an option does not fit.
        CheckpointError: If the checkpoint cannot be read.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        device: str = 'auto',
        score_thr: float = 0.3,
        tile: int | None = None,
        batch: int = 1,
        config: str | None = None,
        cfg_options: Sequence[str] = (),
        precision: str = 'fp32',
    ) -> None:
        if tile is not None and tile < 64:
            raise SetupError(f'A tile of {tile} pixels is too small: expected at least 64.')
        if batch < 1:
            raise SetupError(f'A batch of {batch} images: expected at least 1.')
        if not isinstance(model, torch.nn.Module):
            model = load_model(model, device, cfg_options, config)
            use_winograd(model)
        self.model: Any = model
        self._autocast = autocast(precision, next(model.parameters()).device)
        if precision != 'fp32':
            return_fp32(model)
        meta: Any = self.model.dataset_meta
        self.score_thr, self.tile, self.batch = score_thr, tile, batch
        cfg: Any = self.model.cfg
        self.scope: str = cfg.default_scope
        if tile is not None and self.scope == 'mmpretrain':
            raise SetupError(
                'Tiles are for detectors and segmentors, and this model is a classifier.'
            )
        import_library(self.scope)
        with DefaultScope.overwrite_default_scope(self.scope):
            self._load, self._prepare = _pipeline(cfg)
        self.multiband: Any = self._load if hasattr(self._load, 'picture_of') else None
        self._reduce_zero_label = self.scope == 'mmseg' and reduces_zero_label(cfg)
        self.categories = find_categories(cfg, meta, _count_classes(self.model))

    def __call__(self, images: Any) -> Any:
        """Predict on an image, or on a list of images.

        Args:
            images: Path, address (`https://...`), `PIL.Image.Image`, array of uint8 `(H, W, 3)` in BGR or `(H, W)`;
                or a list or tuple of them.

        Returns:
            A `Prediction`, or a list of them.

        Raises:
            ImageError: If an image cannot be read; the message names it.
        """
        if isinstance(images, (list, tuple)):
            return list(self.stream(images))
        return next(self.stream([images]))

    def stream(self, images: Iterable[Any]) -> Iterator[Prediction]:
        """Predict on images one batch at a time, for videos and other long sequences."""
        waiting = iter(images)
        while loaded := [self.load(image) for image in islice(waiting, self.batch)]:
            yield from self.predict(loaded)

    def load(self, image: Any) -> LoadedImage:
        """Read an image and prepare it for the model; refuse those that are too large to be predicted without tiles."""
        name = str(image) if isinstance(image, (str, Path)) else None
        try:
            if name is None:
                loaded = self._from_array(image)
            else:
                with local_file(name) as file:
                    loaded = self._from_file(file, name)
        except Exception as error:  # decoders raise errors of many kinds on damaged files
            raise ImageError(f'{name or type(image).__name__}: {_reason(error)}') from error
        height, width = loaded.pixels.shape[:2]
        if self.tile is not None and max(height, width) > self.tile:
            return loaded
        if height * width > _LARGEST_WHOLE and self.scope != 'mmpretrain':
            raise ImageError(
                f'{name or "array"}: {width} x {height} pixels are too many for one prediction: use tiles, e.g. of '
                '1024 pixels (--tile 1024)'
            )
        try:
            loaded.packed = self.pack(loaded.pixels, name)
        except Exception as error:  # transforms may fail in any way on odd sizes
            raise ImageError(f'{name or "array"}: the test pipeline fails: {error}') from error
        return loaded

    def predict(self, images: Sequence[LoadedImage]) -> list[Prediction]:
        """Predict on loaded images; those of one size together."""
        samples = iter(self._run([image.packed for image in images if image.packed is not None]))
        return [
            Prediction(
                self._tiled(image.pixels) if image.packed is None else self._cleaned(next(samples)),
                image.picture,
                image.path,
                self.categories,
            )
            for image in images
        ]

    def _from_file(self, file: str, name: str) -> LoadedImage:
        pixels = self._load({'img_path': file})['img']
        picture = None
        if self.multiband is not None:
            picture = np.ascontiguousarray(self.multiband.picture_of(pixels)[..., ::-1])
        elif pixels.dtype != np.uint8:  # to_float32
            picture = pixels.clip(0, 255).astype(np.uint8)
        return LoadedImage(pixels, pixels if picture is None else picture, name)

    def _from_array(self, image: Any) -> LoadedImage:
        if self.multiband is not None:
            raise ValueError('a model of LoadMultibandImage predicts on files only')
        image = as_bgr(image)
        return LoadedImage(image, image, None)

    def pack(self, pixels: np.ndarray, path: str | None = None) -> dict[str, Any]:
        """Run the test pipeline behind the loader."""
        packed: dict[str, Any] = self._prepare(
            {
                'img': pixels,
                'img_path': path,
                'img_id': 0,
                'sample_idx': 0,
                'img_shape': pixels.shape[:2],
                'ori_shape': pixels.shape[:2],
                'reduce_zero_label': self._reduce_zero_label,
                'seg_fields': [],
            }
        )
        return packed

    def _run(self, packed: list[dict[str, Any]]) -> list[Any]:
        """Return the data samples of several images, on the model's device."""
        groups: dict[Any, list[int]] = {}
        for index, item in enumerate(packed):
            groups.setdefault(item['inputs'].shape, []).append(index)
        samples: list[Any] = [None] * len(packed)
        scope = DefaultScope.overwrite_default_scope(self.scope)
        with torch.no_grad(), guard_mmengine(), scope, self._autocast:
            for chosen in groups.values():
                batch = {
                    key: [packed[index][key] for index in chosen]
                    for key in ('inputs', 'data_samples')
                }
                for index, sample in zip(chosen, self.model.test_step(batch)):
                    samples[index] = sample
        return samples

    def _cleaned(self, sample: Any) -> Any:
        """Return a data sample on the CPU, with the objects above the threshold and without logits."""
        if 'pred_instances' in sample:
            found = sample.pred_instances
            sample.pred_instances = found[found.scores >= self.score_thr]
        elif 'pred_sem_seg' in sample:
            kind = torch.uint8 if len(self.categories.names) < 256 else torch.uint16
            labels = sample.pred_sem_seg.data.to(kind)
            sample.pred_sem_seg = PixelData(data=labels)
            del sample.seg_logits
        return sample.cpu()

    def run_crops(self, crops: list[np.ndarray]) -> list[Any]:
        """Return the data samples of tiles; those of a segmentor with logits."""
        samples = self._run([self.pack(np.ascontiguousarray(crop)) for crop in crops])
        if self.scope == 'mmdet':
            return [self._cleaned(sample) for sample in samples]
        return [sample.cpu() for sample in samples]

    def _tiled(self, pixels: np.ndarray) -> Any:
        """Return the data sample of an image that is predicted by tiles."""
        assert self.tile is not None
        height, width = pixels.shape[:2]
        sample = self.pack(pixels[: self.tile, : self.tile])['data_samples']
        sample.set_metainfo({'ori_shape': (height, width), 'img_shape': (height, width)})
        if self.scope == 'mmdet':
            sample.pred_instances = detect_tiles(pixels, self.tile, self.batch, self.run_crops)
            return sample
        kind = np.uint8 if len(self.categories.names) < 256 else np.uint16
        labels = np.empty((height, width), kind)
        for x, y, part in self.label_parts(
            (height, width), lambda x, y, w, h: pixels[y : y + h, x : x + w]
        ):
            labels[y : y + part.shape[0], x : x + part.shape[1]] = part
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
        return sample

    def label_parts(
        self, shape: tuple[int, int], read: Any
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield x, y and the labels `(h, w)` of the parts of an image; see `segment_tiles`."""
        assert self.tile is not None
        for x, y, logits in segment_tiles(shape, read, self.tile, self.batch, self.run_crops):
            if len(logits) > 1:
                yield x, y, logits.argmax(0)
            else:  # probabilities of one class
                yield x, y, logits[0] > self.model.decode_head.threshold


def _pipeline(cfg: Any) -> tuple[Any, Any]:
    """Return the loader of the test pipeline, and the steps behind it without annotations."""
    steps = list(tested_data(cfg).get('pipeline') or cfg.get('test_pipeline') or ())
    if not steps:
        raise SetupError(
            'The config of the model has no test pipeline: name a config with --config.'
        )
    if any(step['type'].endswith('TestTimeAug') for step in steps):
        raise SetupError(
            'The test pipeline of the config has test-time augmentation, which predict does not do.'
        )
    steps = [step for step in steps if 'LoadAnnotations' not in step['type']]
    first = dict(type='LoadImageFromFile')
    if steps[0]['type'].rpartition('.')[2].startswith('Load'):
        first = steps.pop(0)
    loading = Compose([first]).transforms[0]
    return loading, Compose(steps)


def _count_classes(model: Any) -> int:
    """Return the number of classes that a model tells apart."""
    for name in ('decode_head', 'bbox_head', 'head'):
        head: Any = getattr(model, name, None)
        if head is None and hasattr(model, 'roi_head'):
            head = getattr(model.roi_head, name, None)
        while isinstance(head, torch.nn.ModuleList):  # a cascade
            head = head[-1]
        if isinstance(getattr(head, 'num_classes', None), int):
            return int(head.num_classes)
    return 0


def _reason(error: Exception) -> str:
    """Return why an image cannot be read, in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if 'CV_IO_MAX_IMAGE' in str(error):
        return (
            'more pixels than OpenCV reads: use a TIFF file with --tile 1024 and rasterio installed'
        )
    if isinstance(error, (AssertionError, AttributeError, cv2.error)):
        return 'not an image, or damaged'
    return str(error)
