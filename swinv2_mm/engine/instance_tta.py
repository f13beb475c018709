"""Test-time augmentation of detectors: boxes and masks of several views of an image become one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.registry import MODELS

_FLIPPED_AXES: dict[str | None, tuple[int, ...]] = {
    **dict(horizontal=(-1,), vertical=(-2,), diagonal=(-1, -2)),
    None: (),
}


@MODELS.register_module()
class InstanceTTAModel(BaseTTAModel):
    """Merge the predictions of a detector for flipped and resized views.

    Boxes are flipped back and suppressed per class, as in `DetTTAModel` of MMDetection. The mask of a box that is kept
    is the weighted majority of the masks that were found for it: in each view, of the instance of its class with the
    largest IoU, if that is at least `iou_threshold`, weighted by its score. A view without it does not count.

    Args:
        iou_threshold: Of the non-maximum suppression, and for masks to count.
        max_per_img: Number of instances that are kept.
        kwargs: See `mmengine.model.BaseTTAModel`.
    """

    def __init__(self, iou_threshold: float = 0.5, max_per_img: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.iou_threshold = iou_threshold
        self.max_per_img = max_per_img

    def test_step(self, data: dict[str, Any]) -> Any:
        """Predict the views of a batch and merge them."""
        # MMDetection's cascades would flip the masks of their stages.
        for view in (view for views in data['data_samples'] for view in views):
            if 'flip' not in view.metainfo:
                raise SetupError(
                    'A view of an image does not tell whether it is flipped: add flip and flip_direction to meta_keys '
                    'of the last step of tta_pipeline.'
                )
            direction = view.flip_direction if view.flip else None
            view.set_metainfo(dict(flip=False, view_flip=direction))
        return super().test_step(data)

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """Return one data sample per image, from those of its views."""
        return [self._merge(views) for views in data_samples_list]

    def _merge(self, views: Sequence[Any]) -> Any:
        instances = [view.pred_instances for view in views]
        view_boxes = [_flip_boxes(view) for view in views]
        boxes = torch.cat(view_boxes)
        scores = torch.cat([found.scores for found in instances])
        labels = torch.cat([found.labels for found in instances])
        kept = batched_nms(boxes.float(), scores.float(), labels, self.iou_threshold)
        kept = kept[: self.max_per_img]
        merged = InstanceData(bboxes=boxes[kept], scores=scores[kept], labels=labels[kept])
        if 'masks' in instances[0]:
            merged.masks = self._vote(views, view_boxes, merged)
        result = views[0].new()
        result.pred_instances = merged
        return result

    def _vote(self, views: Sequence[Any], view_boxes: Sequence[Tensor], merged: Any) -> Tensor:
        """Return a mask for each of the merged instances, a boolean tensor of shape (instances, height, width)."""
        size = views[0].pred_instances.masks.shape[-2:]
        votes = torch.zeros((len(merged), *size), dtype=torch.bool, device=merged.bboxes.device)
        matches = []
        for view, boxes in zip(views, view_boxes):
            found = view.pred_instances
            iou = box_iou(merged.bboxes.float(), boxes.float())
            iou = iou.masked_fill(merged.labels[:, None] != found.labels, 0)
            if not len(found):
                continue
            best, index = iou.max(dim=1)
            matches.append((found, index, (best >= self.iou_threshold) * found.scores[index], view))
        for row in range(len(merged)):  # one at a time: all masks in fp32 would take gigabytes
            total = torch.zeros(size, device=votes.device)
            weight = 0.0
            for found, index, weights, view in matches:
                if share := float(weights[row]):
                    total += share * _flip_mask(found.masks[index[row]], view)
                    weight += share
            votes[row] = total > weight / 2
        return votes


def _flip_boxes(view: Any) -> Tensor:
    """Return the boxes of a view `(instances, 4)` in the image that is not flipped, in pixels."""
    boxes = view.pred_instances.bboxes.clone()
    height, width = view.ori_shape[:2]
    axes = _FLIPPED_AXES[view.view_flip]
    if -1 in axes:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if -2 in axes:
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return boxes


def _flip_mask(mask: Tensor, view: Any) -> Tensor:
    return mask.flip(_FLIPPED_AXES[view.view_flip])
