"""COCO results of a detector on disk, as `--out FILE.json` of the tool `test` writes them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS


@METRICS.register_module(force=True)
class CocoResultsFile(CocoMetric):
    """Write one json with the boxes, scores and masks of all images: the list that `COCO.loadRes` reads.

    Args:
        out_file_path: The file.
        options: `ann_file` and other options of mmdet's `CocoMetric`.
    """

    def __init__(self, out_file_path: str, **options: Any) -> None:
        super().__init__(**options)
        self.out_file_path = out_file_path

    def compute_metrics(self, results: Sequence[Any]) -> dict[str, float]:
        """Write the file; there are no metrics."""
        assert self.dataset_meta is not None
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        with tempfile.TemporaryDirectory() as folder:
            files = self.results2json([found for _, found in results], str(Path(folder, 'results')))
            shutil.move(files.get('segm', files['bbox']), self.out_file_path)
        return {}
