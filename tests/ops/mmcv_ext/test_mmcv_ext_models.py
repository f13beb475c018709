"""Train and predict with detectors of mmdet on the stand-in, in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)

SCRIPT = """
import json
import sys

import swinv2_mm  # all that a config's custom_imports does

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

register_all_modules()


def build(name, **changes):
    config = get_config(name)
    config.merge_from_dict({'model.backbone.init_cfg': None, **changes})
    with DefaultScope.overwrite_default_scope('mmdet'):  # other tests leave theirs
        return MODELS.build(config.model)


def batch():
    masks = np.zeros((2, 72, 104), np.uint8)
    masks[0, 10:40, 8:50] = masks[1, 30:70, 40:100] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(72, 104), ori_shape=(72, 104), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 10, 50, 40], [40, 30, 100, 70]]),
        labels=torch.tensor([3, 17]),
        masks=BitmapMasks(masks, 72, 104),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return dict(inputs=[torch.randint(0, 256, (3, 72, 104), dtype=torch.uint8)], data_samples=[sample])


def try_out(model, autocast):
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        data = model.data_preprocessor(batch(), training=True)
        losses = model(**data, mode='loss')
    total = sum(sum(loss) if isinstance(loss, list) else loss for name, loss in losses.items() if 'loss' in name)
    total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        found = model.test_step(batch())[0].pred_instances
    return dict(
        losses=sorted(name for name in losses if 'loss' in name),
        total=float(total),
        without_grad=[name for name, grad in grads.items() if grad is None],
        bad_grad=[name for name, grad in grads.items() if grad is not None and not grad.isfinite().all()],
        mask_grad=float(sum(g.abs().sum() for n, g in grads.items() if 'mask_head' in n)),
        boxes=list(found.bboxes.shape),
        masks=list(found.masks.shape),
        scores=[float(score) for score in found.scores],
    )


torch.manual_seed(0)
everything = {
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 50,
    'model.test_cfg.rcnn.score_thr': 0.0,
    'model.test_cfg.rcnn.max_per_img': 7,
}
mask_rcnn = build(
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    **everything,
    **{
        'model.backbone.embed_dims': 12,
        'model.backbone.depths': [1, 1, 1, 1],
        'model.neck.in_channels': [12, 24, 48, 96],
    },
)
cascade = build(
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    **everything,
    **{
        'model.backbone.depth': 18,
        'model.neck.in_channels': [64, 128, 256, 512],
        'model.test_cfg.rcnn.nms': dict(type='soft_nms', iou_threshold=0.5, min_score=0.001),
    },
)
print('RESULT ' + json.dumps(dict(
    extension=repr(sys.modules['mmcv._ext']),
    mask_rcnn=try_out(mask_rcnn, autocast=False),
    mask_rcnn_autocast=try_out(mask_rcnn, autocast=True),
    cascade=try_out(cascade, autocast=False),
)))
"""


@pytest.fixture(scope='module')
def result():
    root = Path(mmcv_ext.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT],
        env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('RESULT '))
    return json.loads(line.removeprefix('RESULT '))


def test_the_stand_in_was_used(result):
    assert 'swinv2_mm' in result['extension']


@pytest.mark.parametrize('name', ['mask_rcnn', 'mask_rcnn_autocast', 'cascade'])
def test_detector_takes_a_training_step_and_predicts(result, name):
    outcome = result[name]
    assert any('loss_mask' in loss for loss in outcome['losses'])
    assert any('loss_rpn_bbox' in loss for loss in outcome['losses'])
    assert 0 < outcome['total'] < 100
    assert outcome['without_grad'] == [] and outcome['bad_grad'] == []
    assert outcome['mask_grad'] > 0
    assert outcome['boxes'] == [7, 4] and outcome['masks'] == [7, 72, 104]
    assert outcome['scores'] == sorted(outcome['scores'], reverse=True)
    assert all(0 <= score <= 1 for score in outcome['scores'])
