"""Confusion matrix, numbers per class, and the worst images of a model."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swinv2_mm.apis.results import Categories, categories_of
from swinv2_mm.apis.side_by_side import side_by_side
from swinv2_mm.engine.console import quiet
from swinv2_mm.engine.errors import SetupError

IOU = 0.5
"""Overlap from which an object counts as found."""
_SIDE = 640


class Analysis:
    """What a model confuses, by class and by image.

    Args:
        categories: The classes.
        worst: Number of images to keep.
        background: Whether the matrix has a last row and column for what is no object.
        score_thr: Score from which objects are drawn.
    """

    def __init__(
        self, categories: Categories, worst: int, background: bool = False, score_thr: float = 0.0
    ) -> None:
        size = len(categories.names) + background
        self.categories, self.limit, self.score_thr = categories, worst, score_thr
        self.background = background
        self.matrix = np.zeros((size, size), np.int64)
        self.images: list[tuple[str, float]] = []
        self.columns: dict[str, list[float]] = {}
        self.curves: dict[str, np.ndarray] = {}
        self.score_name = 'F1' if background else 'score'
        self._worst: list[tuple[float, int, str, Any, Callable[[], np.ndarray]]] = []

    @property
    def names(self) -> list[str]:
        """The names of rows and columns of the matrix."""
        return [*self.categories.names, *(['background'] if self.background else [])]

    def add(self, matrix: np.ndarray, score: float, name: str, sample: Any, picture: Any) -> None:
        """Add the counts of one image, and its score from 0 to 1.

        `sample` has ground truth and prediction, or is a function that returns it; `picture` returns the image in BGR.
        """
        self.matrix += matrix
        self.images.append((name, score))
        if self.limit:
            entry = (-score, -len(self.images), name, sample, picture)
            change = heapq.heappush if len(self._worst) < self.limit else heapq.heappushpop
            change(self._worst, entry)

    def add_sample(self, sample: Any, picture: Callable[[], np.ndarray]) -> None:
        """Add the data sample of a segmentor or classifier: scored by the IoU of its classes or the probability of the
        true one."""
        name = Path(sample.get('img_path') or f'{sample.get("sample_idx", len(self.images))}').name
        count = len(self.categories.names)
        if 'pred_sem_seg' in sample:
            self.score_name = 'mean IoU of its classes'
            true = sample.gt_sem_seg.data.cpu().numpy().ravel().astype(np.int64)
            found = sample.pred_sem_seg.data.cpu().numpy().ravel().astype(np.int64)
            known = (true < count) & (found < count)
            indices = true[known] * count + found[known]
            matrix = np.bincount(indices, minlength=count**2).reshape(count, count)
            ious = per_class(matrix)['IoU']
            score = float(np.nanmean(ious)) if known.any() else 1.0
            kept = type(sample)(metainfo=sample.metainfo)
            kept.pred_sem_seg = sample.pred_sem_seg.cpu().clone()
            kept.gt_sem_seg = sample.gt_sem_seg.cpu().clone()
            kind = torch.uint8 if count < 256 else torch.int16
            for part in kept.pred_sem_seg, kept.gt_sem_seg:
                part.data = part.data.to(kind)
        else:
            self.score_name = 'probability of the true class'
            labels = sample.gt_label.flatten().tolist()
            if len(labels) != 1:
                raise SetupError('The analysis of a classifier needs images with one class each.')
            matrix = np.zeros((count, count), np.int64)
            matrix[labels[0], int(sample.pred_score.argmax())] = 1
            score, kept = float(sample.pred_score[labels[0]]), sample
        self.add(matrix, score, name, kept, picture)

    def worst_pictures(self) -> list[tuple[str, float, np.ndarray]]:
        """Return name, score and picture of the worst images, the worst first."""
        found = []
        for negative, _, name, sample, picture in sorted(self._worst, key=lambda e: (-e[0], -e[1])):
            sample = sample() if callable(sample) else sample
            pane = side_by_side(sample, picture(), self.categories, _SIDE, self.score_thr)
            found.append((name, -negative, pane))
        return found


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall, F1 and IoU of each class of a matrix `(true, predicted)`; NaN where undefined."""
    hits, true, found = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return {
            'precision': hits / found,
            'recall': hits / true,
            'F1': 2 * hits / (true + found),
            'IoU': hits / (true + found - hits),
        }


def analyze_objects(
    ann_file: str, results: str, folder: str, meta: dict[str, Any], score_thr: float, worst: int
) -> Analysis:
    """Return the analysis of COCO results; an image is scored by the F1 of its objects.

    `ann_file` and `results` are COCO jsons, `meta` has `classes` of the data set, those of the file by default, and
    `palette`. Objects count in the matrix from `score_thr` on.
    """
    import supervision

    with quiet():
        try:
            truth = COCO(ann_file)
            found = truth.loadRes(results)
        except IndexError as error:
            raise SetupError(f'{results} has no objects.') from error
        except (OSError, ValueError, KeyError, AssertionError, TypeError) as error:
            raise SetupError(f'{results} are no COCO results for {ann_file}: {error}.') from error
    if not truth.anns:
        raise SetupError(f'{ann_file} has no annotations: there is nothing to compare with.')
    by_name = {item['name']: item['id'] for item in truth.dataset['categories']}
    classes = [name for name in meta['classes'] or by_name if name in by_name]
    ids = [by_name[name] for name in classes]
    analysis = Analysis(categories_of({**meta, 'classes': classes}), worst, True, score_thr)
    evaluate = supervision.ConfusionMatrix.evaluate_detection_batch
    for image_id in truth.getImgIds():
        image = truth.imgs[image_id]
        given = truth.loadAnns(truth.getAnnIds([image_id], ids))
        crowds = [item['bbox'] for item in given if item.get('iscrowd')]
        given = [item for item in given if not item.get('iscrowd')]
        predicted = found.loadAnns(found.getAnnIds([image_id], ids))
        predicted = [item for item in predicted if not _inside(item['bbox'], crowds)]
        rows = _rows(predicted, ids), _rows(given, ids)[:, :5]
        matrix = evaluate(*rows, len(ids), score_thr, IOU)
        hits, total = np.trace(matrix), matrix[:-1].sum() + matrix[:, :-1].sum()
        score = float(2 * hits / total) if total else 1.0

        def sample(given: Any = given, predicted: Any = predicted, image: Any = image) -> Any:
            return _sample(truth, given, predicted, ids, image)

        path = Path(folder, image['file_name'])
        analysis.add(matrix, score, image['file_name'], sample, lambda path=path: mmcv.imread(path))
    _add_precision(analysis, truth, found, ids)
    return analysis


def _add_precision(analysis: Analysis, truth: Any, found: Any, ids: list[int]) -> None:
    """Add average precision and curves of precision over recall."""
    kinds = ['bbox', *(['segm'] if 'segmentation' in found.dataset['annotations'][0] else [])]
    if not all(item.get('segmentation') for item in truth.dataset['annotations']):
        kinds = ['bbox']
    for kind in kinds:
        with quiet():
            coco = COCOeval(truth, found, kind)
            coco.params.catIds = ids
            coco.params.useCats = 1
            coco.evaluate()
            coco.accumulate()
        precision = coco.eval['precision'][:, :, :, 0, -1]  # IoU, recall, class
        order = [coco.params.catIds.index(number) for number in ids]
        word = 'mask' if kind == 'segm' else 'box'
        for name, part in (('AP', precision), ('AP50', precision[:1])):
            values = part[:, :, order].mean((0, 1))
            analysis.columns[f'{word} {name}'] = [
                float(value) if value >= 0 else np.nan for value in values
            ]
        if kind == 'bbox':
            for label, index in enumerate(order):
                if precision[0, 0, index] >= 0:
                    name = analysis.categories.names[label]
                    analysis.curves[name] = precision[0, :, index]


def _rows(items: list[Any], ids: list[int]) -> np.ndarray:
    """Return x1, y1, x2, y2, label and score of COCO annotations or results, `(N, 6)`."""
    rows = [
        (x, y, x + w, y + h, ids.index(item['category_id']), item.get('score', 1.0))
        for item in items
        for x, y, w, h in [item['bbox']]
    ]
    return np.array(rows, np.float32).reshape(-1, 6)


def _inside(box: list[float], crowds: list[list[float]]) -> bool:
    """Return whether half of a box lies in the box of a crowd."""
    return bool(crowds) and coco_masks.iou([box], crowds, [1] * len(crowds)).max() >= IOU


def _sample(truth: Any, given: Any, predicted: Any, ids: list[int], image: Any) -> Any:
    """Return a data sample of COCO annotations and results."""
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo={'img_path': image['file_name']})
    for name, items in (('gt_instances', given), ('pred_instances', predicted)):
        rows = torch.from_numpy(_rows(items, ids))
        part = InstanceData(
            bboxes=rows[:, :4], labels=rows[:, 4].long(), scores=rows[:, 5].contiguous()
        )
        if items and all(item.get('segmentation') for item in items):
            masks = np.stack([truth.annToMask(item) for item in items])
            part.masks = torch.from_numpy(masks)
        setattr(sample, name, part)
    return sample
