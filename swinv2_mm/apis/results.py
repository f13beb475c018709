"""The prediction for one image: the library's data sample, and what it is converted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from mmengine.config import Config
from pycocotools import mask as coco_masks

from swinv2_mm.datasets.checks.configured import leaf_datasets
from swinv2_mm.engine.console import warn
from swinv2_mm.engine.evaluation import tested_data

TOP = 5
"""Number of classes that a classifier's results list."""
_GAPS_OF_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


@dataclass(frozen=True)
class Categories:
    """The classes of a model.

    Args:
        names: Names of the classes.
        ids: Their numbers in the data: of the annotation file for a detector, of the label files for a segmentor, of
            the classes for a classifier.
        colours: RGB colours.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    colours: tuple[tuple[int, int, int], ...]

    def as_coco(self) -> list[dict[str, Any]]:
        """Return the list `categories` of a COCO json."""
        return [{'id': number, 'name': name} for number, name in zip(self.ids, self.names)]


class Prediction:
    """The prediction for one image. Attributes of the library's data sample are attributes of it, too.

    Args:
        sample: The `DetDataSample`, `SegDataSample` or `DataSample`, on the CPU.
        image: The image `(H, W, 3)` in BGR.
        path: Where the image came from, if it was a file.
        categories: The classes.
    """

    def __init__(
        self, sample: Any, image: np.ndarray, path: str | None, categories: Categories
    ) -> None:
        self.sample, self.image, self.path, self.categories = sample, image, path, categories

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'sample':
            raise AttributeError(name)
        return getattr(self.sample, name)

    def __repr__(self) -> str:
        return f'Prediction({self.path or "array"}, {len(self.to_coco())} results)'

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return what is in the image as COCO results.

        Returns:
            Dicts with `image_id`, `category_id` and, depending on the model, `score`, `bbox` (x, y, width, height in
            pixels of the image), `segmentation` (run lengths) and `area` in pixels: one per object of a detector, per
            class in the image of a segmentor, and for the five most likely classes of a classifier.
        """
        return [
            {'image_id': image_id, 'category_id': self.categories.ids[label], **result}
            for label, result in self._results()
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table: `class`, `category_id`, and numbers."""
        total = self.image.shape[0] * self.image.shape[1]
        for label, result in self._results(masks='pred_sem_seg' in self.sample):
            row = {'class': self.categories.names[label], 'category_id': self.categories.ids[label]}
            if 'score' in result:
                row['score'] = round(result['score'], 5)
            if 'bbox' in result and 'score' in result:
                x, y, width, height = result['bbox']
                corners = (x, y, x + width, y + height)
                row |= {
                    key: round(value, 2) for key, value in zip(('x1', 'y1', 'x2', 'y2'), corners)
                }
            elif 'area' in result:
                row |= {'pixels': result['area'], 'share': round(result['area'] / total, 5)}
            yield row

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` of a detector, or one mask per class in the image of a segmentor."""
        import supervision

        if 'pred_instances' in self.sample:
            found = self.sample.pred_instances
            boxes, labels = found.bboxes.numpy(), found.labels.numpy()
            masks = found.get('masks')
            if isinstance(masks, torch.Tensor):
                masks = masks.numpy().astype(bool)
            elif masks is not None:
                from supervision.detection.compact_mask import CompactMask

                masks = CompactMask.from_coco_rle(masks, boxes, self.image.shape[:2])
            scores = found.scores.numpy()
        elif 'pred_sem_seg' in self.sample:
            values = self.label_map()
            labels = np.unique(values[values < len(self.categories.names)]).astype(int)
            masks = values == labels[:, None, None]
            boxes = supervision.mask_to_xyxy(masks).astype(np.float32)
            scores = None
        else:
            raise TypeError('the results of a classifier are no detections')
        return supervision.Detections(
            xyxy=boxes,
            mask=masks,
            confidence=scores,
            class_id=labels,
            data={'class_name': np.array([self.categories.names[label] for label in labels], str)},
        )

    def label_map(self) -> np.ndarray:
        """Return the class of each pixel that a segmentor found: `(H, W)` of uint8 or uint16, from 0."""
        values = self.sample.pred_sem_seg.data
        values = values.numpy() if isinstance(values, torch.Tensor) else values
        return values.reshape(values.shape[-2:])

    def plot(self) -> np.ndarray:
        """Return the picture `(H, W, 3)` in BGR with the prediction drawn into it."""
        from swinv2_mm.apis.pictures import draw

        return draw(self)

    def save(self, path: str | Path) -> None:
        """Write the picture with the prediction drawn into it; the suffix chooses the format."""
        from swinv2_mm.apis.pictures import write

        write(path, self.plot())

    def scores(self) -> list[tuple[int, float]]:
        """Return labels and scores of the most likely classes of a classifier."""
        values, labels = self.sample.pred_score.topk(min(TOP, len(self.sample.pred_score)))
        return list(zip(labels.tolist(), values.tolist()))

    def _results(self, masks: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield labels and results of all objects or classes."""
        if 'pred_score' in self.sample:
            for label, score in self.scores():
                yield label, {'score': score}
        elif 'pred_sem_seg' in self.sample:
            values = self.label_map()
            for label in np.unique(values[values < len(self.categories.names)]).tolist():
                yield label, _of_mask(encode(values == label), box=True)
        else:
            found = self.sample.pred_instances
            given = found.get('masks') if masks else None
            for index, (box, label, score) in enumerate(
                zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())
            ):
                x1, y1, x2, y2 = box
                result = {'bbox': [x1, y1, x2 - x1, y2 - y1], 'score': score}
                if given is not None:
                    mask = given[index]
                    mask = encode(mask.numpy()) if isinstance(mask, torch.Tensor) else mask
                    result |= _of_mask(mask, box=False)
                else:
                    result['area'] = (x2 - x1) * (y2 - y1)
                yield label, result


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the run lengths `{'size', 'counts'}` of a mask `(H, W)`, fit for json."""
    return _as_text(coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_crop(crop: np.ndarray, offset: Sequence[int], shape: tuple[int, int]) -> dict[str, Any]:
    """Return the run lengths of a mask in an image of `shape` (H, W), `crop` being its part at `offset` (x, y)."""
    (x, y), (height, width) = offset, shape
    columns = np.zeros((height, crop.shape[1]), np.uint8)
    columns[y : y + crop.shape[0]] = crop
    values = columns.ravel(order='F')
    changes = np.flatnonzero(np.diff(values, prepend=0)) + x * height
    counts = np.diff(changes, prepend=0, append=height * width).tolist()
    return _as_text(
        coco_masks.frPyObjects({'size': [height, width], 'counts': counts}, height, width)
    )


def _as_text(encoded: dict[str, Any]) -> dict[str, Any]:
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode()}


def _of_mask(mask: dict[str, Any], box: bool) -> dict[str, Any]:
    result = {'segmentation': mask, 'area': int(coco_masks.area(mask))}
    if box:
        result['bbox'] = coco_masks.toBbox(mask).tolist()
    return result


def find_categories(cfg: Config, meta: dict[str, Any], count: int) -> Categories:
    """Return the classes of a model, filled up to `count`, with the numbers that its data gives them."""
    found = categories_of(meta, count)
    ids = found.ids
    if cfg.default_scope == 'mmdet':
        ids = _coco_ids(cfg, found.names)
    elif cfg.default_scope == 'mmseg' and reduces_zero_label(cfg):
        ids = tuple(range(1, 1 + len(ids)))
    return replace(found, ids=ids)


def categories_of(meta: dict[str, Any], count: int = 0) -> Categories:
    """Return the classes that the `metainfo` of a data set names, filled up to `count`, with ids from 0."""
    names = tuple(str(name) for name in meta.get('classes') or meta.get('CLASSES') or ())
    names += tuple(f'class {index}' for index in range(len(names), count))
    palette = meta.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(names):
        from matplotlib import colormaps

        # Pairs of a strong colour and a light one: the strong ones come first.
        order = [*range(0, 20, 2), *range(1, 20, 2)]
        colours = (255 * colormaps['tab20'](order)[:, :3]).round()
        palette = [colours[index % 20] for index in range(len(names))]
    rgb = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return Categories(names, tuple(range(len(names))), rgb)


def reduces_zero_label(cfg: Config) -> bool:
    """Return whether the label files of a segmentor count its classes from 1."""
    return bool(tested_data(cfg).get('reduce_zero_label'))


def _coco_ids(cfg: Config, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the category ids of the annotation file of a detector, COCO's own, or the numbers from 1."""
    (leaf,) = leaf_datasets(tested_data(cfg), 'test')
    with suppress(OSError, ValueError, LookupError, TypeError):
        listed = orjson.loads(Path(leaf.ann_file or '').read_bytes())['categories']
        found = {item['name']: int(item['id']) for item in listed}
        return tuple(found[name] for name in names)
    from mmdet.datasets import CocoDataset

    if names == CocoDataset.METAINFO['classes']:
        return tuple(number for number in range(1, 91) if number not in _GAPS_OF_COCO)
    warn('category ids: the classes from 1 on, since the annotation file of the config is not here')
    return tuple(range(1, len(names) + 1))
