"""Tiles give what the whole image gives."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from pycocotools import mask as coco_masks

from swinv2_mm.apis.tiles import detect_tiles, segment_tiles


class _Sample:
    pass


def _segment(crops):
    """A model that sees single pixels."""
    samples = []
    for crop in crops:
        sample = _Sample()
        sample.seg_logits = PixelData(data=torch.from_numpy(crop.transpose(2, 0, 1).copy()))
        samples.append(sample)
    return samples


@pytest.mark.parametrize(
    'height, width', [(64, 200), (65, 64), (200, 64), (113, 160), (161, 209), (300, 301), (10, 90)]
)
@pytest.mark.parametrize('batch', [1, 3])
def test_the_weights_of_overlapping_tiles_add_up_to_one(height, width, batch):
    image = np.random.default_rng(0).random((height, width, 3), np.float32)
    result = np.full((height, width, 3), np.nan, np.float32)

    def read(x, y, w, h):
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        return image[y : y + h, x : x + w]

    for x, y, logits in segment_tiles((height, width), read, 64, batch, _segment):
        part = result[y : y + logits.shape[1], x : x + logits.shape[2]]
        assert np.isnan(part).all()  # each pixel once
        part[:] = logits.transpose(1, 2, 0)
    np.testing.assert_allclose(result, image, atol=1e-6)


def test_tiles_fade_into_one_another():
    """A model whose logits differ from tile to tile leaves no step at the borders."""
    count = iter(range(100))

    def run(crops):
        samples = _segment(
            [np.full((*crop.shape[:2], 1), next(count), np.float32) for crop in crops]
        )
        return samples

    result = np.zeros((64, 400), np.float32)
    parts = segment_tiles((64, 400), lambda x, y, w, h: np.zeros((h, w, 1), np.float32), 64, 1, run)
    for x, y, logits in parts:
        result[y : y + logits.shape[1], x : x + logits.shape[2]] = logits[0]
    steps = np.abs(np.diff(result, axis=1))
    assert result[0, 0] == 0 and result[0, -1] >= 6
    assert steps.max() <= 1 / 16 + 1e-6


def _detect(crops):
    """A model that finds bright areas, and numbers them as objects of class 1."""
    samples = []
    for crop in crops:
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            (crop[..., 0] > 0).astype(np.uint8)
        )
        masks = torch.from_numpy(np.array([labels == i for i in range(1, count)])).reshape(
            -1, *crop.shape[:2]
        )
        x, y, w, h, area = (stats[1:, i] for i in range(5))
        boxes = np.stack([x, y, x + w, y + h], 1).astype(np.float32).reshape(-1, 4)
        sample = _Sample()
        sample.pred_instances = InstanceData(
            bboxes=torch.from_numpy(boxes),
            scores=torch.from_numpy((0.5 + area / 10000).astype(np.float32)),
            labels=torch.ones(count - 1, dtype=torch.int64),
            masks=masks,
        )
        samples.append(sample)
    return samples


@pytest.mark.parametrize('batch', [1, 2])
def test_an_object_in_several_tiles_appears_once(batch):
    image = np.zeros((150, 330, 3), np.uint8)
    image[10:30, 5:25] = 255  # inside of one tile
    image[60:75, 90:112] = 255  # over a border
    image[98:130, 250:282] = 255  # over a border
    found = detect_tiles(image, 100, batch, _detect)
    order = found.bboxes[:, 1].argsort()
    assert found.bboxes[order].tolist() == [
        [5, 10, 25, 30],
        [90, 60, 112, 75],
        [250, 98, 282, 130],
    ]
    assert found.labels.tolist() == [1, 1, 1]
    union = sum(coco_masks.decode(mask) for mask in found.masks)
    assert (union == image[..., 0] // 255).all()


def test_an_image_without_objects():
    found = detect_tiles(np.zeros((150, 330, 3), np.uint8), 100, 2, _detect)
    assert len(found) == 0 and found.bboxes.shape == (0, 4) and len(found.masks) == 0
