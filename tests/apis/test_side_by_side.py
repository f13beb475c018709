"""Pictures land in one folder under the names of their images."""

from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from swinv2_mm.apis.pictures import draw
from swinv2_mm.apis.results import Categories, Prediction, categories_of
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


def test_classes_without_colours_have_colours_of_their_own():
    assert len(set(categories_of({}, 20).colours)) == 20


def test_a_legend_leaves_half_of_a_small_picture_free_and_lists_the_largest_classes():
    labels = torch.zeros(1, 240, 240, dtype=torch.uint8)
    for label in range(1, 20):
        labels[:, : 12 * (20 - label), label] = (
            label  # a stripe each, the last ones below half a per cent
        )
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    categories = categories_of({'classes': [f'c{index}' for index in range(20)]})
    white = np.full((240, 240, 3), 255, np.uint8)
    picture = draw(Prediction(sample, white, None, categories))
    unmarked = (picture[:, 239] == picture[239, 239]).all(1)
    assert unmarked[120:].all()
    dark = (picture[:, 30:100].max(2) < 120).any(1)
    assert dark[:60].any() and not dark[130:].any()
