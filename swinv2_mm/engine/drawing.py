"""Pictures of ground truth and prediction, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from mmengine.runner import Runner


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
        for sample in outputs or ():
            if self.limit is not None and self.num_drawn >= self.limit:
                return
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

    def _file(self, image: Path) -> Path:
        """Returns the path of a picture; images of one name in several folders keep their folder's name."""
        file = self.folder / f'{image.stem}.png'
        if file in self._written:
            file = self.folder / f'{image.parent.name}_{image.stem}.png'
        self._written.add(file)
        return file
