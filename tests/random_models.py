"""Checkpoints of models with random weights, as a Runner writes them."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from swinv2_mm.engine.console import import_library

ROOT = Path(__file__).parents[1]
DETECTOR = str(ROOT / 'configs/quickstart/mask-rcnn_swinv2-nano_fpn_shapes.py')
SEGMENTOR = str(ROOT / 'configs/quickstart/swinv2-nano_upernet_shapes.py')
CLASSIFIER = str(ROOT / 'configs/classification/swinv2-nano-p4-w8_1xb32-30e_digits.py')


def save_random_model(config: str, folder: Path) -> str:
    """Write `iter_1.pth` and return its path."""
    torch.manual_seed(0)
    cfg = Config.fromfile(config)
    import_library(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    if cfg.default_scope == 'mmseg':  # otherwise one class wins everywhere
        torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    head = cfg.model.get('head') or {}
    classes = {'mmpretrain': [f'digit {i}' for i in range(head.get('num_classes', 0))]}
    meta = {}
    if cfg.default_scope in classes:
        meta = {'classes': classes[cfg.default_scope]}
    path = folder / 'iter_1.pth'
    content = dict(
        state_dict=model.state_dict(),
        meta=dict(cfg=cfg.pretty_text, iter=1, epoch=0, dataset_meta=meta),
        message_hub={},
    )
    torch.save(content, path)
    return str(path)
