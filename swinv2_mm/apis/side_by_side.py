"""Ground truth and prediction side by side, and the hooks that draw them in an evaluation and a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import LocalVisBackend

from swinv2_mm.apis.pictures import draw, stack, title_bar, write
from swinv2_mm.apis.results import Categories, Prediction, categories_of
from swinv2_mm.datasets.checks.read_files import find_step
from swinv2_mm.engine.curves import SafeHook
from swinv2_mm.registry import HOOKS

FOLDER = 'val_pictures'
_INSTANCE_OFFSET = 1000  # of mmdet's panoptic maps


def read_picture(sample: Any, dataset: Any, model: Any, inputs: Any) -> np.ndarray:
    """Return the picture `(H, W, 3)` of a data sample in BGR.

    `inputs` is the image `(C, H, W)` as the pipeline packs it, for data sets that have no image files.
    """
    path = sample.get('img_path')
    loader = find_step(dataset, 'LoadMultibandImage')
    if path and loader is not None:
        return np.ascontiguousarray(loader.picture(Path(path))[..., ::-1])
    if path:
        return mmcv.imread(str(path))
    while hasattr(model, 'module'):
        model = model.module
    picture = inputs.permute(1, 2, 0).cpu().numpy()
    rgb = getattr(model.data_preprocessor, 'to_rgb', False)
    return np.ascontiguousarray(picture[..., ::-1] if rgb else picture)


def side_by_side(
    sample: Any,
    picture: np.ndarray,
    categories: Categories,
    side: int | None = None,
    score_thr: float = 0.0,
) -> np.ndarray:
    """Return one picture in BGR: ground truth left, prediction right, each at most `side` pixels wide and high.

    Sample and `picture` have the same size; objects of a detector below `score_thr` are left out.
    """
    name = Path(sample.get('img_path') or str(sample.get('sample_idx', ''))).name
    panes = {
        f'{name}: ground truth': truth_of(sample, len(categories.names)),
        'prediction': _found(sample, score_thr),
    }
    drawn = {
        title: draw(Prediction(part, picture, None, categories), side)
        for title, part in panes.items()
    }
    titled = [np.vstack([title_bar(title, pane.shape[1]), pane]) for title, pane in drawn.items()]
    return np.hstack(
        [np.pad(pane, ((0, 0), (0, 4), (0, 0)), constant_values=255) for pane in titled]
    )


def _found(sample: Any, score_thr: float) -> Any:
    """Return a sample with the prediction alone."""
    part = type(sample)()
    if 'pred_instances' in sample:
        found = sample.pred_instances
        part.pred_instances = _plain(found[found.scores >= score_thr])
    elif 'pred_sem_seg' in sample:
        part.pred_sem_seg = PixelData(data=_labels(sample.pred_sem_seg.data))
    elif 'pred_panoptic_seg' in sample:  # numbers of objects are multiples of the offset
        classes = sample.pred_panoptic_seg.sem_seg % _INSTANCE_OFFSET
        part.pred_sem_seg = PixelData(data=_labels(classes))
    else:
        part.set_pred_score(sample.pred_score.detach().cpu().float())
    return part


def truth_of(sample: Any, count: int) -> Any:
    """Return a sample whose prediction is the ground truth of another one, if it has one, with `count` classes."""
    part = type(sample)()
    if 'gt_instances' in sample:
        given = sample.gt_instances
        part.pred_instances = _plain(given, torch.full((len(given.labels),), float('nan')))
    elif 'gt_sem_seg' in sample:
        part.pred_sem_seg = PixelData(data=_labels(sample.gt_sem_seg.data))
    elif 'gt_label' in sample:
        part.set_pred_score(torch.zeros(count).index_fill(0, sample.gt_label.cpu().flatten(), 1.0))
    else:
        empty = InstanceData(bboxes=[], labels=[])
        part.pred_instances = _plain(empty, torch.zeros(0))
    return part


def _labels(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().cpu()
    return values.to(torch.uint8 if values.max() < 256 else torch.uint16)


def _plain(instances: Any, scores: torch.Tensor | None = None) -> InstanceData:
    """Return boxes, labels, scores and masks as tensors on the CPU."""
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    plain = InstanceData(
        bboxes=torch.as_tensor(boxes).detach().cpu().float().reshape(-1, 4),
        labels=torch.as_tensor(instances.labels).cpu(),
        scores=instances.scores.detach().cpu() if scores is None else scores,
    )
    if 'masks' in instances:
        masks = instances.masks
        if not isinstance(masks, torch.Tensor):
            masks = torch.from_numpy(masks.to_ndarray().astype(bool))
        plain.masks = masks.detach().cpu().bool()
    return plain


@HOOKS.register_module()
class SideBySideHook(Hook):
    """Write one PNG per test image, ground truth left and prediction right, all into one folder.

    Args:
        folder: Folder of the pictures; created if necessary.
        limit: Number of pictures to draw at most; None for all.
        min_score: Detections below this score are not drawn.
    """

    def __init__(
        self, folder: str | Path, limit: int | None = None, min_score: float = 0.5
    ) -> None:
        self.folder, self.limit, self.min_score = Path(folder), limit, min_score
        self._written: set[Path] = set()

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw the predictions of one batch."""
        dataset = runner.test_dataloader.dataset
        inputs = data_batch['inputs']
        if isinstance(inputs[0], (list, tuple)):  # the views of test-time augmentation
            inputs = inputs[0]
        for sample, image in zip(outputs or (), inputs):
            if self.limit is not None and len(self._written) >= self.limit:
                return
            picture = read_picture(sample, dataset, runner.model, image)
            categories = categories_of(dataset.metainfo)
            drawn = side_by_side(sample, picture, categories, score_thr=self.min_score)
            number = sample.get('sample_idx', len(self._written))
            write(self._file(Path(sample.get('img_path') or f'{number:05d}')), drawn)

    def after_test(self, runner: Runner) -> None:
        """Log where the pictures are."""
        runner.logger.info(f'pictures: {len(self._written)} in {self.folder}')

    def _file(self, image: Path) -> Path:
        """Return the path of a picture; images of one name in several folders keep their folder's name."""
        file = self.folder / f'{image.stem}.png'
        if file in self._written:
            file = self.folder / f'{image.parent.name}_{image.stem}.png'
        self._written.add(file)
        return file


@HOOKS.register_module()
class SamplePicturesHook(SafeHook):
    """Draw ground truth and prediction of a few validation samples, always the same, after each validation.

    The pictures are `val_pictures/epoch_3.jpg` or `iter_4000.jpg` in the work directory, and `predictions` in
    TensorBoard and the other backends of the visualizer.

    Args:
        count: Number of samples, spread over the validation set.
        side: Largest side of a drawn image in pixels.
        score_thr: Objects of a detector below this score are not drawn.
        limit: Number of pictures that a training writes at most, besides the last. With more validations than that,
            every second one is drawn, or every third, and so on.
    """

    priority = 'LOWEST'

    def __init__(
        self, count: int = 4, side: int = 400, score_thr: float = 0.3, limit: int = 30
    ) -> None:
        self.count, self.side, self.score_thr, self.limit = count, side, score_thr, limit
        self._wanted: set[int] = set()
        self._rows: list[np.ndarray] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the samples, those of the first process."""
        self._wanted, self._rows = set(), []
        if isinstance(runner._train_loop, BaseLoop) and self._is_due(runner.train_loop):
            last = len(runner.val_dataloader.dataset) // runner.world_size - 1
            self._wanted = set(np.linspace(0, max(0, last), self.count).round().astype(int))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw the chosen samples of a batch."""
        first = batch_idx * (runner.val_dataloader.batch_size or 1)
        for index, sample in enumerate(outputs or ()):
            if first + index in self._wanted:
                self.attempt(runner, self._draw, sample, data_batch, index)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the picture."""
        if self._rows:
            self.attempt(runner, self._write)

    def _is_due(self, loop: Any) -> bool:
        """Return whether this validation is one of those that are drawn."""
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        interval = max(1, loop.val_interval)
        every = -(-(end // interval) // self.limit) or 1
        return bool(done >= end or (done // interval) % every == 0)

    def _draw(self, runner: Runner, sample: Any, data_batch: Any, index: int) -> None:
        dataset = runner.val_dataloader.dataset
        picture = read_picture(sample, dataset, runner.model, data_batch['inputs'][index])
        categories = categories_of(dataset.metainfo)
        self._rows.append(side_by_side(sample, picture, categories, self.side, self.score_thr))

    def _write(self, runner: Runner) -> None:
        picture = stack(self._rows)
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        name = f'epoch_{runner.epoch}' if by_epoch else f'iter_{runner.iter}'
        write(Path(runner.work_dir, FOLDER, f'{name}.jpg'), picture)
        for backend in runner.visualizer._vis_backends.values():
            if not isinstance(backend, LocalVisBackend):
                backend.add_image(
                    'predictions', cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), runner.iter
                )
