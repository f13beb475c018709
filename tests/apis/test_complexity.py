"""Parameters and multiply-adds equal counts by hand."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from random_models import DETECTOR
from small_backbones import BACKBONES, build

from swinv2_mm import SwinTransformerV2
from swinv2_mm.apis.complexity import count_parts
from swinv2_mm.engine.console import import_library


def count_by_hand(size, dims, depths, window, patch=4):
    """Multiply-adds per stage, the patch embedding first: padded windows, real tokens elsewhere."""
    height, width = (-(-side // patch) for side in size)
    found = [height * width * 3 * patch**2 * dims[0]]
    for stage, (dim, depth) in enumerate(zip(dims, depths)):
        tokens, sides = height * width, [min(window, side) for side in (height, width)]
        windows = -(-height // sides[0]) * -(-width // sides[1])
        block = tokens * 12 * dim**2 + 2 * windows * (sides[0] * sides[1]) ** 2 * dim
        height, width = -(-height // 2), -(-width // 2)
        last = stage == len(dims) - 1
        found.append(depth * block + (0 if last else height * width * 8 * dim**2))
    return found


@pytest.mark.parametrize('size', [(64, 64), (35, 49), (9, 133)])
@pytest.mark.parametrize('kind', list(BACKBONES))
def test_counts_are_those_by_hand_for_odd_sizes_too(kind, size):
    backbone = build(kind)
    parts = count_parts(backbone, size)
    assert [part.macs for part in parts] == [*count_by_hand(size, (16, 32), (2, 1), 4), 0]
    assert sum(part.params for part in parts) == sum(p.numel() for p in backbone.parameters())


@pytest.mark.parametrize('window, macs', [(8, 5.9), (16, 6.6)])
def test_tiny_has_the_numbers_of_the_paper(window, macs):
    with torch.device('meta'):
        backbone = SwinTransformerV2('tiny', window_size=window, out_indices=(3,))
    parts = count_parts(backbone, (256, 256))
    assert round(sum(part.macs for part in parts) / 1e9, 1) == macs
    classifier = 768 * 1000 + 1000
    assert round((sum(part.params for part in parts) + classifier) / 1e6, 2) == 28.35


def test_counting_changes_nothing(randomize):
    backbone, x = randomize(build('plain')).train(), torch.randn(1, 3, 35, 49)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    expected = backbone(x)
    first = count_parts(backbone, (35, 49))
    for got, wanted in zip(backbone(x), expected):
        assert torch.equal(got, wanted)
    assert backbone.training and count_parts(backbone.eval(), (35, 49)) == first
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_heads_of_a_detector_by_hand():
    cfg = Config.fromfile(DETECTOR)
    import_library('mmdet')
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    parts = {part.name: part for part in count_parts(model, (96, 160))}
    assert sum(part.params for part in parts.values()) == sum(p.numel() for p in model.parameters())
    box, mask, limits = model.roi_head.bbox_head, model.roi_head.mask_head, model.test_cfg
    linear = [m for m in box.modules() if isinstance(m, torch.nn.Linear)]
    per_box = sum(layer.in_features * layer.out_features for layer in linear)
    convs = [m.weight.numel() * 7**2 for m in box.modules() if isinstance(m, torch.nn.Conv2d)]
    per_box += sum(convs)
    assert parts['roi_head.bbox_head'].macs == limits.rpn.max_per_img * per_box
    convs = [conv.conv.weight.numel() * 14**2 for conv in mask.convs]
    last = mask.upsample.weight.numel() * 14**2 + mask.conv_logits.weight.numel() * 28**2
    assert parts['roi_head.mask_head'].macs == limits.rcnn.max_per_img * (sum(convs) + last)
    pixels = sum(-(-96 // s) * -(-160 // s) for s, _ in model.rpn_head.prior_generator.strides)
    rpn = sum(p.numel() for name, p in model.rpn_head.named_parameters() if 'weight' in name)
    assert parts['rpn_head'].macs == pixels * rpn
