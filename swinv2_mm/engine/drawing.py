"""Pictures of ground truth and prediction: side by side, or as words on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

_SMALLEST_SIDE = 224
"""Pixels to which smaller pictures of a classifier are enlarged, so that words can be read on them."""


class SideBySideHook(Hook):
    """Writes one PNG per test image, annotation left and prediction right, all into one folder.

    It drives the visualizer of the config. The libraries' own hooks do, too, but mmdet's keeps the suffix of the image
    and mmseg's writes into the log directory under other names.

    Args:
        folder: Where the pictures go; made if need be.
        limit: Number of pictures to draw at most; None for all.
        min_score: Detections below this score are not drawn.
    """

    def __init__(
        self, folder: str | Path, limit: int | None = None, min_score: float = 0.5
    ) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self.min_score = min_score
        self.num_drawn = 0
        self._written: set[Path] = set()

    def before_test(self, runner: Runner) -> None:
        """Makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draws the predictions of one batch."""
        for index, sample in enumerate(outputs or ()):
            if self.limit is not None and self.num_drawn >= self.limit:
                return
            if 'pred_label' in sample:
                self._draw_label(runner, sample, index, data_batch)
                self.num_drawn += 1
                continue
            path = Path(sample.img_path)
            options = {'pred_score_thr': self.min_score} if 'pred_instances' in sample else {}
            runner.visualizer.add_datasample(
                path.stem,
                mmcv.imread(str(path), channel_order='rgb'),
                data_sample=sample,
                draw_gt=True,
                out_file=str(self._file(path)),
                **options,
            )
            self.num_drawn += 1

    def _draw_label(self, runner: Runner, sample: Any, index: int, data_batch: Any) -> None:
        """Writes true and predicted class onto a picture of a classifier."""
        if sample.get('img_path'):
            path = Path(sample.img_path)
            image = mmcv.imread(str(path), channel_order='rgb')
        else:
            # CIFAR-10's pictures have no files. Under test-time augmentation, the first view is drawn.
            inputs = data_batch['inputs']
            if isinstance(inputs[0], (list, tuple)):
                inputs = inputs[0]
            path = Path(f'{sample.get("sample_idx", self.num_drawn):05d}')
            image = inputs[index].permute(1, 2, 0).cpu().numpy()
            model = getattr(runner.model, 'module', runner.model)
            if getattr(model.data_preprocessor, 'to_rgb', False):
                image = image[..., ::-1]
        side = min(image.shape[:2])
        runner.visualizer.visualize_cls(
            np.ascontiguousarray(image),
            sample,
            resize=_SMALLEST_SIDE if side < _SMALLEST_SIDE else None,
            out_file=str(self._file(path)),
        )

    def _file(self, image: Path) -> Path:
        """Returns the path of a picture; images of one name in several folders keep their folder's name."""
        file = self.folder / f'{image.stem}.png'
        if file in self._written:
            file = self.folder / f'{image.parent.name}_{image.stem}.png'
        self._written.add(file)
        return file
