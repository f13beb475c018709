"""Batches for a training step, without a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

OBJECTS = 8
"""Per image of a detection batch; COCO has 7 on average."""


def detection_batch(batch: int, size: tuple[int, int], classes: int) -> dict[str, list[Any]]:
    """Noise images, each with ellipses of all scales as instances.

    Args:
        batch: Number of images.
        size: Height and width in pixels, at least 32 each.
        classes: Number of classes.

    Returns:
        `inputs`: uint8 `(3, H, W)` each; `data_samples`: with boxes, labels and masks.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    rng = np.random.default_rng(0)
    samples = []
    for index in range(batch):
        sides = np.array([height, width]) * rng.uniform(0.1, 0.6, (OBJECTS, 2))
        corner = rng.uniform(0, 1, (OBJECTS, 2)) * (np.array([height, width]) - sides)
        masks = np.stack([_ellipse(size, *pair) for pair in zip(corner, sides)])
        boxes = np.concatenate([corner[:, ::-1], (corner + sides)[:, ::-1]], axis=1)
        sample = DetDataSample(metainfo=_meta(index, size))
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.from_numpy(boxes).float()),
            labels=torch.from_numpy(rng.integers(0, classes, OBJECTS)),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return {'inputs': _noise(batch, size), 'data_samples': samples}


def segmentation_batch(batch: int, size: tuple[int, int], classes: int) -> dict[str, list[Any]]:
    """Noise images with a label map of 16 x 16 blocks each.

    Args:
        batch: Number of images.
        size: Height and width in pixels.
        classes: Number of classes.

    Returns:
        `inputs`: uint8 `(3, H, W)` each; `data_samples`: with label maps `(1, H, W)`.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(batch):
        blocks = torch.randint(0, classes, (1, 1, 16, 16), generator=generator)
        labels = torch.nn.functional.interpolate(blocks.float(), size=size).long()[0]
        sample = SegDataSample(metainfo=_meta(index, size))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return {'inputs': _noise(batch, size), 'data_samples': samples}


def _noise(batch: int, size: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), generator=generator).to(torch.uint8) for _ in range(batch)
    ]


def _ellipse(size: tuple[int, int], corner: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The mask `(H, W)` of an ellipse that fills a box."""
    rows, cols = np.mgrid[: size[0], : size[1]]
    centre, half = corner + sides / 2, sides / 2
    inside = ((rows - centre[0]) / half[0]) ** 2 + ((cols - centre[1]) / half[1]) ** 2 <= 1
    return inside.astype(np.uint8)


def _meta(index: int, size: tuple[int, int]) -> dict[str, Any]:
    return dict(
        img_id=index,
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
    )
