"""Pictures land in one folder under the names of their images."""

from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData

from swinv2_mm.apis.results import Categories
from swinv2_mm.apis.side_by_side import SideBySideHook, side_by_side


def test_images_of_one_name_do_not_overwrite_each_other():
    hook = SideBySideHook('vis')
    assert hook._file(Path('berlin/0001.jpg')) == Path('vis/0001.png')
    assert hook._file(Path('bonn/0001.jpg')) == Path('vis/bonn_0001.png')


def test_panoptic_maps_are_drawn_by_class():
    sample = DetDataSample(metainfo=dict(img_path='a.jpg'))
    classes = torch.tensor([[1, 1001, 0, 2]]).repeat(240, 60)  # 2 is no class
    sample.pred_panoptic_seg = PixelData(sem_seg=classes[None])
    categories = Categories(('sky', 'dog'), (1, 2), ((255, 0, 0), (0, 255, 0)))
    picture = side_by_side(sample, np.zeros((240, 240, 3), np.uint8), categories)
    pane = picture[-40:, 244:484]  # below the legend
    assert np.array_equal(pane[0, :4], [[0, 128, 0], [0, 128, 0], [0, 0, 128], [0, 0, 0]])
