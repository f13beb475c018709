"""Modules that are exported: a trained network from the image to its results, in plain operators.

Detectors compute what mmdet's `predict` computes, for a whole batch at once: boxes of all images are in one list,
beside the index of their image.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from swinv2_mm.engine.errors import SetupError

OUTPUTS = {
    'segmentor': ('labels', 'logits'),
    'classifier': ('logits',),
    'detector': ('boxes', 'scores', 'labels', 'batch_index'),
}
"""Names of the outputs; a detector with a mask head adds `masks`, a backbone has `stage1` to `stage4`."""


class ExportedModel(nn.Module):
    """Normalises images and runs a part of the network on them.

    Args:
        model: The trained model of an OpenMMLab library, in evaluation mode; it is copied.
        dtype: Dtype of the weights; images are normalised in fp32.

    Attributes:
        channels: Channels of the image.
        outputs: Names of the outputs.
    """

    outputs: tuple[str, ...]
    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        given = model.data_preprocessor
        self.channels = model.backbone.in_channels
        self.takes_bgr = takes_bgr(model)
        self.divisor = int(_test_divisor(given))
        self.pad_value = float(getattr(given, 'pad_value', getattr(given, 'pad_val', 0)))
        self.normalizes = bool(getattr(given, '_enable_normalize', False))
        if self.normalizes:
            self.register_buffer('mean', given.mean.detach().clone().view(-1, 1, 1).float())
            self.register_buffer('std', given.std.detach().clone().view(-1, 1, 1).float())
        self.dtype = dtype
        self.model = without_decisions(copy.deepcopy(model)).to(dtype).requires_grad_(False)

    def prepare(self, image: Tensor) -> Tensor:
        """Map images `(B, H, W, C)`, RGB if there are three channels, to the input of the backbone."""
        x = image.permute(0, 3, 1, 2).float()
        if self.takes_bgr:
            x = x[:, [2, 1, 0]]
        if self.normalizes:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            most = self.divisor - 1
            height, width = (size + most - (size + most) % self.divisor for size in x.shape[2:])
            x = F.pad(x, (0, most, 0, most), value=self.pad_value)[:, :, :height, :width]
        return x.to(self.dtype)


class ExportedBackbone(ExportedModel):
    """Feature maps `(B, C_i, H_i, W_i)` of the backbone."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, dtype)
        self.outputs = tuple(f'stage{stage + 1}' for stage in self.model.backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map images to one map per stage."""
        return tuple(feature.float() for feature in self.model.backbone(self.prepare(image)))


class ExportedClassifier(ExportedModel):
    """Logits `(B, classes)`."""

    outputs = OUTPUTS['classifier']

    def forward(self, image: Tensor) -> Tensor:
        """Map images to logits."""
        return self.model(self.prepare(image), mode='tensor').float()


class ExportedSegmentor(ExportedModel):
    """Label map `(B, H, W)` and logits `(B, classes, H, W)`, both of the size of the image."""

    outputs = OUTPUTS['segmentor']

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to labels and logits."""
        x = self.prepare(image)
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x)).float()
        logits = F.interpolate(
            logits, size=x.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )[:, :, : image.shape[1], : image.shape[2]]
        if head.out_channels > 1:
            return logits.argmax(1).to(torch.int32), logits
        return (logits[:, 0].sigmoid() > head.threshold).to(torch.int32), logits


def takes_bgr(model: Any) -> bool:
    """Return whether the network, after its preprocessor, expects BGR: three channels as OpenCV reads them."""
    converts = getattr(model.data_preprocessor, '_channel_conversion', None)
    if converts is None:
        converts = getattr(model.data_preprocessor, 'channel_conversion', None)
    if converts is None:
        converts = getattr(model.data_preprocessor, 'to_rgb', False)
    return model.backbone.in_channels == 3 and not converts


def _test_divisor(preprocessor: Any) -> int:
    """Return what the preprocessor pads the sides of test images to a multiple of."""
    test = getattr(preprocessor, 'test_cfg', None) or {}
    if test.get('size'):
        raise SetupError(
            'The data preprocessor pads test images to a fixed size: export with --cfg-options '
            'model.data_preprocessor.test_cfg=None.'
        )
    return test.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', 1) or 1


class _Pool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, which do not depend on the size of the map."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, *size)`."""
        rows, cols = (self._weights(x, axis).to(x.dtype) for axis in (0, 1))
        return rows @ x @ cols.t()

    def _weights(self, x: Tensor, axis: int) -> Tensor:
        bins, extent = self.size[axis], x.shape[axis + 2]
        index = torch.arange(bins, device=x.device)[:, None]
        start, end = index * extent // bins, ((index + 1) * extent + (bins - 1)) // bins
        position = torch.arange(extent, device=x.device)
        inside = (position >= start) & (position < end)
        return inside.float() / (end - start).float()


def without_decisions(model: nn.Module) -> nn.Module:
    """Replace modules that decide by the size of their input, in place."""
    child: Any
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                new: nn.Module = _Pool(child.output_size)
            elif type(child).__name__ == 'Upsample' and not isinstance(child, nn.Upsample):
                new = nn.Upsample(child.size, child.scale_factor, child.mode, child.align_corners)
            else:
                continue
            parent.register_module(name, new)
    return model


def least(size: Any, most: int) -> Any:
    """Return the smaller of a size, which may be unknown, and a number."""
    return min(size, most) if isinstance(size, int) else torch.minimum(size, torch.tensor(most))


class ExportedDetector(ExportedModel):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        require_two_stages(model)
        super().__init__(model, dtype)
        self.has_masks = bool(self.model.roi_head.with_mask)
        self.outputs = OUTPUTS['detector'] + ('masks',) * self.has_masks

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in images `(B, H, W, C)`.

        Returns:
            For the N objects of all images, best score first: boxes `(N, 4)` as x1, y1, x2, y2 in pixels, scores,
            labels and the index of the image in the batch, `(N,)` each, and for a mask head the masks
            `(N, 28, 28)` inside the boxes, probabilities.
        """
        size = image.shape[1:3]
        features = self.model.extract_feat(self.prepare(image))
        rois = self._propose(features, image.shape[0], size)
        boxes, scores, labels, images = self._detect(features, rois, image.shape[0], size)
        if not self.has_masks:
            return boxes, scores, labels, images
        rois = torch.cat((images[:, None].to(boxes), boxes), 1)
        pooled, order = self._pool(self.model.roi_head.mask_roi_extractor, features, rois)
        logits = self.model.roi_head.mask_head(pooled).float()
        of = torch.zeros_like(labels) if logits.shape[1] == 1 else labels[order]
        chosen = of[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
        masks = logits.gather(1, chosen)[:, 0].sigmoid()
        scores, best = scores[order].sort(descending=True)
        order = order[best]
        return boxes[order], scores, labels[order], images[order], masks[best]

    def _propose(self, features: tuple[Tensor, ...], batch: Any, size: Any) -> Tensor:
        """Return the proposals of all images, `(K, 5)`: index of the image, then the box."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        maps, deltas = head(features)
        sizes = [item.shape[2:] for item in maps]
        priors = head.prior_generator.grid_priors(sizes, device=maps[0].device)
        boxes, scores, levels = [], [], []
        for level, (raw, delta, anchors) in enumerate(zip(maps, deltas, priors)):
            score = raw.float().permute(0, 2, 3, 1).reshape(batch, -1, head.cls_out_channels)
            score = score.sigmoid()[..., 0] if head.use_sigmoid_cls else score.softmax(-1)[..., 0]
            if cfg.get('nms_pre', -1) > 0:
                score, index = score.topk(least(score.shape[1], cfg.nms_pre), dim=1)
            else:
                index = torch.arange(score.shape[1]).expand_as(score)
            delta = delta.float().permute(0, 2, 3, 1).reshape(batch, -1, 4)
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            chosen = anchors[index.reshape(-1)]
            boxes.append(decode(head.bbox_coder, chosen, delta.reshape(-1, 4), size))
            scores.append(score.reshape(-1))
            image = torch.arange(batch)[:, None].expand_as(index).reshape(-1)
            levels.append(image * len(maps) + level)
        box, score, group = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        if cfg.get('min_bbox_size', -1) >= 0:
            sides = box[:, 2:] - box[:, :2]
            valid = (sides > cfg.min_bbox_size).all(1).nonzero()[:, 0]
            box, score, group = box[valid], score[valid], group[valid]
        kept = nms(apart(box, group, size), score, cfg.nms.iou_threshold)
        images = group[kept] // len(maps)
        first = first_of_each(images, batch, cfg.max_per_img)
        return torch.cat((images[first][:, None].to(box), box[kept[first]]), 1)

    def _detect(
        self, features: tuple[Tensor, ...], rois: Tensor, batch: Any, size: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes, scores, labels and image indices of the objects, best score first."""
        head, cfg = self.model.roi_head.bbox_head, self.model.roi_head.test_cfg
        pooled, order = self._pool(self.model.roi_head.bbox_roi_extractor, features, rois)
        rois = rois[order]
        logits, deltas = (item.float() for item in head(pooled))
        boxes = decode(head.bbox_coder, rois[:, 1:], deltas, size)
        scores = logits.softmax(-1)[:, : head.num_classes]
        index, labels = (scores > cfg.score_thr).nonzero().unbind(1)
        boxes = boxes.reshape(-1, 1 if head.reg_class_agnostic else head.num_classes, 4)
        boxes = (
            boxes[:, 0][index]
            if head.reg_class_agnostic
            else boxes.flatten(0, 1)[index * head.num_classes + labels]
        )
        scores = scores.flatten()[index * head.num_classes + labels]
        images = rois[index, 0].long()
        group = images if cfg.nms.get('class_agnostic') else images * head.num_classes + labels
        kept = nms(apart(boxes, group, size), scores, cfg.nms.iou_threshold)
        if cfg.max_per_img > 0:
            kept = kept[first_of_each(images[kept], batch, cfg.max_per_img)]
        return boxes[kept], scores[kept], labels[kept], images[kept]

    def _pool(self, extractor: Any, features: Any, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the regions ordered by pyramid level, and this order."""
        levels = extractor.num_inputs
        of = extractor.map_roi_levels(rois, levels)
        parts, orders = [], []
        for level, layer in enumerate(extractor.roi_layers):
            index = (of == level).nonzero()[:, 0]
            orders.append(index)
            parts.append(
                roi_align(
                    features[level].float(),
                    rois[index],
                    layer.output_size,
                    layer.spatial_scale,
                    layer.sampling_ratio,
                    layer.aligned,
                )
            )
        return torch.cat(parts).to(self.dtype), torch.cat(orders)


def decode(coder: Any, boxes: Tensor, deltas: Tensor, size: Any) -> Tensor:
    """Apply deltas `(N, K * 4)` to boxes `(N, 4)` and clip the result to the image."""
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

    found = delta2bbox(
        boxes, deltas, coder.means, coder.stds, add_ctr_clamp=coder.add_ctr_clamp, ctr_clamp=coder.ctr_clamp
    )  # fmt: skip
    corners = found.reshape(-1, 4).unbind(1)
    limits = (size[1], size[0], size[1], size[0])
    clipped = [corner.clamp(min=0, max=most) for corner, most in zip(corners, limits)]
    return torch.stack(clipped, 1).reshape(found.shape)


def apart(boxes: Tensor, group: Tensor, size: Any) -> Tensor:
    """Move the boxes of each group to a place of its own, so that groups do not suppress one another."""
    moved = boxes + (group * (size[0] + size[1] + 1))[:, None].to(boxes)
    return moved.reshape(-1, 4)  # OpenVINO needs to know the number of columns


def first_of_each(images: Tensor, batch: Any, most: int) -> Tensor:
    """Return the indices of the first `most` entries of each image."""
    same = (images[:, None] == torch.arange(batch)).long()
    rank = (same.cumsum(0) * same).sum(1)
    return (rank <= most).nonzero()[:, 0]


def require_two_stages(model: Any) -> None:
    """Check that the detector consists of parts that can be exported."""
    rpn: Any = getattr(model, 'rpn_head', None)
    roi: Any = getattr(model, 'roi_head', None)
    wanted: list[tuple[Any, str]] = [(rpn, 'RPNHead'), (roi, 'StandardRoIHead')]
    if roi is not None and type(roi).__name__ == 'StandardRoIHead':
        wanted += [(roi.bbox_roi_extractor, 'SingleRoIExtractor')]
        wanted += [(part.bbox_coder, 'DeltaXYWHBBoxCoder') for part in (rpn, roi.bbox_head)]
        wanted += [(roi.mask_head, 'FCNMaskHead')] if roi.with_mask else []
    for part, name in wanted:
        if type(part).__name__ != name:
            raise SetupError(
                f'This detector has a {type(part).__name__} where Faster R-CNN and Mask R-CNN have a {name}: only '
                'these two can be exported whole, of others the backbone (--part backbone).'
            )
    layers = [*roi.bbox_roi_extractor.roi_layers]
    layers += roi.mask_roi_extractor.roi_layers if roi.with_mask else []
    plain = all(type(item).__name__ == 'RoIAlign' and item.pool_mode == 'avg' for item in layers)
    kinds = [cfg.nms.get('type', 'nms') for cfg in (rpn.test_cfg, roi.test_cfg)]
    outside = not (rpn.bbox_coder.clip_border and roi.bbox_head.bbox_coder.clip_border)
    only = ''
    if not plain or kinds != ['nms', 'nms'] or roi.with_shared_head:
        only = 'RoIAlign (average) and nms, without a shared head,'
    elif roi.bbox_head.custom_cls_channels or outside:
        only = 'softmax scores and boxes inside the image'
    if only:
        raise SetupError(
            f'Only detectors with {only} can be exported whole; of others the backbone (--part backbone).'
        )
