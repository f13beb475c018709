"""Merging the predictions for several views of an image."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import use_tta
from swinv2_mm.engine.instance_tta import InstanceTTAModel

HEIGHT, WIDTH = 20, 30


class Untouched(nn.Module):
    def test_step(self, data):
        return data


def view_of(boxes, scores, labels, direction=None, with_masks=True):
    """Return what a detector predicts for a view: boxes in pixels of the view, masks that fill them."""
    sample = DetDataSample(metainfo=dict(ori_shape=(HEIGHT, WIDTH), view_flip=direction))
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
    if with_masks:
        found.masks = torch.zeros((len(boxes), HEIGHT, WIDTH), dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(found.masks, boxes):
            mask[top:bottom, left:right] = True
    sample.pred_instances = found
    return sample


def merge(*views, **settings):
    (result,) = InstanceTTAModel(module=Untouched(), **settings).merge_preds([views])
    return result.pred_instances


@pytest.mark.parametrize(
    ('direction', 'flipped'),
    [
        ('horizontal', [20, 5, 28, 15]),
        ('vertical', [2, 5, 10, 15]),
        ('diagonal', [20, 5, 28, 15]),
        (None, [2, 5, 10, 15]),
    ],
)
def test_a_view_is_flipped_back(direction, flipped):
    alone = merge(view_of([flipped], [0.9], [1], direction))
    expected = view_of([[2, 5, 10, 15]], [0.9], [1]).pred_instances
    assert torch.equal(alone.bboxes, expected.bboxes)
    assert torch.equal(alone.masks, expected.masks)
    assert alone.labels.tolist() == [1] and alone.scores.tolist() == pytest.approx([0.9])


def test_views_that_agree_are_one_instance_and_others_stay():
    first = view_of([[2, 5, 10, 15], [20, 1, 29, 9]], [0.6, 0.5], [1, 0])
    second = view_of([[20, 5, 28, 15]], [0.9], [1], 'horizontal')
    merged = merge(first, second)
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5])
    assert merged.labels.tolist() == [1, 0]
    assert merged.bboxes.tolist() == [[2, 5, 10, 15], [20, 1, 29, 9]]
    assert torch.equal(merged.masks, first.pred_instances.masks)
    # Of another class, at the same place: both stay.
    assert len(merge(first, view_of([[2, 5, 10, 15]], [0.9], [2]))) == 3
    assert len(merge(first, second, max_per_img=1)) == 1


def test_masks_are_the_majority_of_the_views_by_score():
    boxes = [[2, 5, 10, 15], [2, 5, 12, 15], [2, 5, 13, 15]]  # 8, 10 and 11 pixels wide
    merged = merge(*(view_of([box], [score], [0]) for box, score in zip(boxes, (0.6, 0.5, 0.4))))
    assert merged.masks[0].nonzero().amax(dim=0).tolist() == [
        14,
        11,
    ]  # the second and third reach there
    merged = merge(*(view_of([box], [score], [0]) for box, score in zip(boxes, (0.9, 0.4, 0.3))))
    assert merged.masks[0].nonzero().amax(dim=0).tolist() == [14, 9]  # the first outweighs both


def test_views_without_objects_and_detectors_without_masks():
    nothing = view_of([], [], [])
    found = view_of([[2, 5, 10, 15]], [0.6], [1])
    assert torch.equal(merge(nothing, found).masks, found.pred_instances.masks)
    assert merge(nothing, nothing).masks.shape == (0, HEIGHT, WIDTH)
    boxes_only = view_of([[2, 5, 10, 15]], [0.6], [1], with_masks=False)
    assert 'masks' not in merge(boxes_only, boxes_only) and len(merge(boxes_only, boxes_only)) == 1


def config(*steps, **model):
    pipeline = [*steps, dict(type='LoadAnnotations'), dict(type='PackDetInputs')]
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(type='MaskRCNN', **model),
            test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=pipeline)),
        )
    )


def test_scales_multiply_the_resize_of_the_test_pipeline():
    load, pad = dict(type='LoadImageFromFile'), dict(type='Pad', size_divisor=32)
    cfg = config(load, dict(type='Resize', scale=(1333, 800), keep_ratio=True), pad)
    assert use_tta(cfg, (0.5, 1.5)) == 'horizontal flip, at 0.5, 1.5 times the size'
    first, augmented = cfg.test_dataloader.dataset.pipeline
    assert first == load
    resizes, pads, flips, *_, packs = augmented.transforms
    assert [step.scale for step in resizes] == [(666, 400), (2000, 1200)]
    assert pads == [pad] and [step.prob for step in flips] == [0.0, 1.0]
    assert 'flip_direction' in packs[0].meta_keys
    assert cfg.model.type == 'swinv2_mm.InstanceTTAModel' and cfg.model.module.type == 'MaskRCNN'


def test_scales_that_cannot_be_used():
    with pytest.raises(SetupError, match='no step of type Resize'):
        use_tta(config(dict(type='LoadImageFromFile')), (0.5,))
    with pytest.raises(SetupError, match='scales are factors'):
        use_tta(config(dict(type='Resize', scale=(64, 64))), (0.0, 1.0))
    with pytest.raises(SetupError, match='panoptic'):
        use_tta(config(panoptic_fusion_head={}, test_cfg=dict(panoptic_on=True)))


def test_all_parts_of_a_concatenation_get_the_views():
    cfg = config(dict(type='LoadImageFromFile'), dict(type='mmdet.Resize', scale=(64, 64)))
    part = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, dict(part)])
    use_tta(cfg, (0.5, 1.0))
    for each in cfg.test_dataloader.dataset.datasets:
        assert each.pipeline[-1].type == 'TestTimeAug'
        assert [step.scale for step in each.pipeline[-1].transforms[0]] == [(32, 32), (64, 64)]


def test_views_that_the_config_has_already():
    views = dict(type='TestTimeAug', transforms=[[dict(type='RandomFlip', prob=1.0)]])
    cfg = config()
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), views]
    cfg.tta_pipeline = None
    tta_cfg = dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=7)
    cfg.tta_model = dict(type='mmdet.DetTTAModel', tta_cfg=tta_cfg)
    with pytest.raises(SetupError, match='has views of its own'):
        use_tta(cfg, (0.5,))
    assert use_tta(cfg) == "the config's own"
    assert cfg.test_dataloader.dataset.pipeline[-1] == views
    assert cfg.model.type == 'swinv2_mm.InstanceTTAModel'
    assert (cfg.model.iou_threshold, cfg.model.max_per_img) == (0.6, 7)


def test_views_that_do_not_tell_whether_they_are_flipped():
    view = view_of([[2, 5, 10, 15]], [0.6], [1])
    with pytest.raises(SetupError, match='add flip and flip_direction to meta_keys'):
        InstanceTTAModel(module=Untouched()).test_step(dict(inputs=[[0]], data_samples=[[view]]))
