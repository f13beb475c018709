"""The configs that `new-config` writes, without data."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm.apis.choices import METHODS
from swinv2_mm.apis.config_text import Data, write_text
from swinv2_mm.engine.config import load_config


@pytest.mark.parametrize('method', METHODS)
def test_every_model_builds(method, tmp_path):
    """The channels of all parts fit together, also for many classes and small images."""
    parts = {part: dict(ann_file=f'/nowhere/{part}.json') for part in ('train', 'val', 'test')}
    sizes = np.full((40, 2), 200.0)
    boxes = dict(boxes=np.full((40, 2), 9.0), of_boxes=np.arange(40), background=3)
    for size in ('nano', 'l'):
        data = Data(tmp_path, [f'kind {number}' for number in range(90)], parts, 40, sizes, **boxes)
        config = tmp_path / f'{size}.py'
        config.write_text(write_text(method, size, data, f'{method} "\n{size}'))
        cfg = load_config(str(config))
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            with torch.device('meta'):
                model = MODELS.build(cfg.model)
            head = getattr(model, 'decode_head', None) or getattr(model, 'head', None)
            head = head or model.roi_head.bbox_head
            assert head.num_classes == 90
            features = model.extract_feat(torch.zeros(2, 3, 64, 64, device='meta'))
            if hasattr(model, 'decode_head'):
                assert model.decode_head(features).shape[:2] == (2, 90)
            elif hasattr(model, 'rpn_head'):
                assert len(model.rpn_head(features)[0]) == 5
            else:
                assert model.head(features).shape == (2, 90)
        if size == 'nano':
            assert 'init_cfg' not in cfg.model.backbone
        else:
            assert cfg.model.backbone.init_cfg.checkpoint.startswith('https://')
        warmup = cfg.param_scheduler[0].end
        assert warmup < cfg.train_cfg.max_iters and cfg.train_cfg.val_interval > 1
