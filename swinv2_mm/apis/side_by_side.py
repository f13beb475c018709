"""Ground truth and prediction side by side, also at each validation of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from swinv2_mm.apis.pictures import draw, import_supervision
from swinv2_mm.apis.results import Categories, Prediction

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def categories_of(meta: dict[str, Any]) -> Categories:
    """Return the classes that the `metainfo` of a data set names, with ids from 0."""
    names = tuple(str(name) for name in meta.get('classes') or meta.get('CLASSES') or ())
    palette = meta.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(names):
        default = import_supervision().ColorPalette.DEFAULT
        palette = [default.by_idx(index).as_rgb() for index in range(len(names))]
    colours = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return Categories(names, tuple(range(len(names))), colours)


def read_picture(sample: Any, loader: Any = None, inputs: Any = None, rgb: bool = False) -> Any:
    """Return the picture `(H, W, 3)` of a data sample in BGR.

    Args:
        sample: A data sample.
        loader: The `LoadMultibandImage` of the pipeline, if it has one.
        inputs: The image `(C, H, W)` as the pipeline packs it, for data sets that have no image files.
        rgb: Whether `inputs` are RGB.
    """
    path = sample.get('img_path')
    if path and loader is not None:
        return np.ascontiguousarray(loader.picture(Path(path))[..., ::-1])
    if path:
        return mmcv.imread(str(path))
    picture = inputs.permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(picture[..., ::-1] if rgb else picture)


def side_by_side(
    sample: Any, picture: np.ndarray, categories: Categories, side: int, score_thr: float
) -> np.ndarray:
    """Return one picture in BGR: ground truth left, prediction right, each at most `side` pixels wide and high.

    Args:
        sample: A data sample with ground truth and prediction in pixels of the picture.
        picture: The picture `(H, W, 3)` in BGR.
        categories: The classes.
        side: Largest side in pixels.
        score_thr: Objects of a detector below this score are left out.
    """
    scale = min(1.0, side / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    drawn = []
    for part in _truth(sample, len(categories.names)), _found(sample, score_thr):
        drawn.append(draw(Prediction(_resized(part, size, scale), small, None, categories)))
    name = Path(sample.get('img_path') or str(sample.get('sample_idx', ''))).name
    titles = (f'{name}: ground truth', 'prediction')
    return np.hstack([_titled(pane, title) for pane, title in zip(drawn, titles)])


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Return pictures below one another, filled up to one width."""
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.vstack(padded)


def _found(sample: Any, score_thr: float) -> Any:
    """Return a sample with the prediction alone."""
    part = type(sample)()
    if 'pred_instances' in sample:
        found = sample.pred_instances
        part.pred_instances = _plain(found[found.scores >= score_thr])
    elif 'pred_sem_seg' in sample:
        part.pred_sem_seg = PixelData(data=_labels(sample.pred_sem_seg.data))
    else:
        part.set_pred_score(sample.pred_score.detach().cpu().float())
    return part


def _truth(sample: Any, count: int) -> Any:
    """Return a sample whose prediction is the ground truth."""
    part = type(sample)()
    if 'pred_instances' in sample:
        given = sample.gt_instances
        unknown = torch.full((len(given.labels),), float('nan'))
        part.pred_instances = _plain(given, unknown)
    elif 'pred_sem_seg' in sample:
        part.pred_sem_seg = PixelData(data=_labels(sample.gt_sem_seg.data))
    else:
        part.set_pred_score(torch.zeros(count).index_fill(0, sample.gt_label.cpu().flatten(), 1.0))
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


def _resized(sample: Any, size: tuple[int, int], scale: float) -> Any:
    """Scale what is in a sample to a picture of `size` (width, height)."""
    if scale == 1:
        return sample
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found.bboxes = found.bboxes * scale
        if 'masks' in found:
            masks = [
                cv2.resize(mask, size, interpolation=cv2.INTER_AREA) >= 128
                for mask in found.masks.numpy().astype(np.uint8) * 255
            ]
            del found.masks
            found.masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *size[::-1]))
    elif 'pred_sem_seg' in sample:
        values = sample.pred_sem_seg.data.numpy()
        values = cv2.resize(
            values.reshape(values.shape[-2:]), size, interpolation=cv2.INTER_NEAREST
        )
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(values)[None])
    return sample


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """Return a picture with a line of text above it."""
    bar = np.full((22, picture.shape[1], 3), 255, np.uint8)
    width = cv2.getTextSize(title, _FONT, 0.45, 1)[0][0]
    scale = 0.45 * min(1, (picture.shape[1] - 8) / width)
    cv2.putText(bar, title, (4, 15), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.vstack([bar, picture]), ((0, 0), (0, 4), (0, 0)), constant_values=255)
