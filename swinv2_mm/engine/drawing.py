"""Pictures of ground truth and prediction: side by side, or as words on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.datasets.checks.read_files import find_step
from swinv2_mm.registry import HOOKS

_SMALLEST_SIDE = 224
"""Pixels to which smaller pictures of a classifier are enlarged, so that words can be read on them."""


@HOOKS.register_module()
class SideBySideHook(Hook):
    """Write one PNG per test image, ground truth left and prediction right, all into one folder.

    It uses the visualizer of the config. The libraries' own hooks have no limit; mmdet's overwrites images of one name,
    and mmseg's writes into the log directory under other names.

    Args:
        folder: Folder of the pictures; created if necessary.
        limit: Number of pictures to draw at most; None for all.
        min_score: Detections below this score are not drawn.
    """

    def __init__(
        self, folder: str | Path, limit: int | None = None, min_score: float = 0.5
    ) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.min_score = min_score
        self._written: set[Path] = set()

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw the predictions of one batch."""
        for index, sample in enumerate(outputs or ()):
            if self.limit is not None and len(self._written) >= self.limit:
                return
            if 'pred_label' in sample:
                self._draw_label(runner, sample, index, data_batch)
                continue
            path = Path(sample.img_path)
            options = {'pred_score_thr': self.min_score} if 'pred_instances' in sample else {}
            runner.visualizer.add_datasample(
                path.stem,
                self._picture(runner, path),
                data_sample=sample,
                out_file=str(self._file(path)),
                **options,
            )

    def after_test(self, runner: Runner) -> None:
        """Log where the pictures are."""
        runner.logger.info(f'pictures: {len(self._written)} in {self.folder}')

    def _draw_label(self, runner: Runner, sample: Any, index: int, data_batch: Any) -> None:
        """Write true and predicted class onto a picture of a classifier."""
        if sample.get('img_path'):
            path = Path(sample.img_path)
            image = mmcv.imread(str(path), channel_order='rgb')
        else:
            # CIFAR-10's pictures have no files. Under test-time augmentation, the first view is drawn.
            inputs = data_batch['inputs']
            if isinstance(inputs[0], (list, tuple)):
                inputs = inputs[0]
            path = Path(f'{sample.get("sample_idx", len(self._written)):05d}')
            image = inputs[index].permute(1, 2, 0).cpu().numpy()
            model = getattr(runner.model, 'module', runner.model)
            if getattr(model.data_preprocessor, 'to_rgb', False):
                image = image[..., ::-1]
        small = min(image.shape[:2]) < _SMALLEST_SIDE
        runner.visualizer.visualize_cls(
            np.ascontiguousarray(image),
            sample,
            resize=_SMALLEST_SIDE if small else None,
            out_file=str(self._file(path)),
        )

    @staticmethod
    def _picture(runner: Runner, path: Path) -> np.ndarray:
        """Return the photograph of a sample, or the bands of it that the pipeline shows."""
        multiband = find_step(runner.test_dataloader.dataset, 'LoadMultibandImage')
        return multiband.picture(path) if multiband else mmcv.imread(str(path), channel_order='rgb')

    def _file(self, image: Path) -> Path:
        """Return the path of a picture; images of one name in several folders keep their folder's name."""
        file = self.folder / f'{image.stem}.png'
        if file in self._written:
            file = self.folder / f'{image.parent.name}_{image.stem}.png'
        self._written.add(file)
        return file
