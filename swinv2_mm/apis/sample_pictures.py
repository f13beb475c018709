"""A hook that draws the predictions on the same samples at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmengine.visualization import LocalVisBackend

from swinv2_mm.apis.pictures import write
from swinv2_mm.apis.side_by_side import categories_of, read_picture, side_by_side, stack
from swinv2_mm.datasets.checks.read_files import find_step
from swinv2_mm.engine.curves import SafeHook
from swinv2_mm.registry import HOOKS

FOLDER = 'val_pictures'


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
        model = getattr(runner.model, 'module', runner.model)
        picture = read_picture(
            sample,
            find_step(dataset, 'LoadMultibandImage'),
            None if sample.get('img_path') else data_batch['inputs'][index],
            getattr(model.data_preprocessor, 'to_rgb', False),
        )
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
