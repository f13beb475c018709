"""Learning rate and weight decay of every parameter, by its name."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm import shipped
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.optimizer import LayerDecayOptimWrapperConstructor

RATE = 0.5
# Two blocks in the third stage: depths 0 to 6, the heads at 7.
ARCH = dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
DEPTH = {
    'patch_embed.': 0,
    'layers.0.blocks.0.': 1,
    'layers.0.downsample.': 1,
    'norm0.': 1,
    'layers.1.blocks.0.': 2,
    'layers.1.downsample.': 2,
    'norm1.': 2,
    'layers.2.blocks.0.': 3,
    'layers.2.blocks.1.': 4,
    'layers.2.downsample.': 4,
    'norm2.': 4,
    'layers.3.blocks.0.': 5,
    'norm3.': 5,
}
MODELS_OF = {
    'detector': '_base_/models/mask-rcnn_swinv2_fpn.py',
    'segmentor': '_base_/models/upernet_swinv2.py',
}


def groups_of(kind, **options):
    """Return the model and learning rate and weight decay by name of parameter."""
    cfg = Config.fromfile(shipped.config(MODELS_OF[kind])).model
    cfg.backbone.arch = ARCH
    dims = [32, 64, 128, 256]
    if kind == 'detector':
        cfg.neck.in_channels = dims
    else:
        cfg.decode_head.in_channels, cfg.auxiliary_head.in_channels = dims, 128
    with (
        DefaultScope.overwrite_default_scope('mmdet' if kind == 'detector' else 'mmseg'),
        torch.device('meta'),
    ):
        model = MODELS.build(cfg)
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='swinv2_mm.LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=options,
        ),
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return {names[g['params'][0]]: (g['lr'], g['weight_decay']) for g in groups}


@pytest.mark.parametrize('kind', MODELS_OF)
def test_the_rate_decays_towards_the_input_and_norms_and_biases_do_not_decay(kind):
    groups = groups_of(kind, layer_decay_rate=RATE)
    seen = set()
    for name, (rate, decay) in groups.items():
        inner = name.removeprefix('backbone.')
        start = next((start for start in DEPTH if inner.startswith(start)), None)
        if name.startswith('backbone.'):
            seen.add(start)
            assert rate == pytest.approx(RATE ** (6 - DEPTH[start])), name
        else:
            assert rate == 1.0, name
        plain = ('bias', 'norm', 'logit_scale', 'cpb_mlp', '.bn.')
        assert decay == (0.0 if any(part in name for part in plain) else 0.05), name
    assert seen == set(DEPTH)


def test_custom_keys_are_honoured():
    keys = dict(backbone=dict(lr_mult=0.1), cpb_mlp=dict(decay_mult=2.0))
    groups = groups_of('detector', layer_decay_rate=RATE, custom_keys=keys)
    assert groups['backbone.patch_embed.proj.weight'] == pytest.approx((0.1 * RATE**6, 0.05))
    assert groups['backbone.norm3.weight'] == pytest.approx((0.1 * RATE, 0.0))
    assert groups['neck.fpn_convs.0.conv.weight'] == (1.0, 0.05)
    only = groups_of('segmentor', custom_keys=dict(cpb_mlp=dict(decay_mult=2.0)))
    decays = {decay for name, (_, decay) in only.items() if 'cpb_mlp' in name}
    assert decays == {0.1}


def test_the_defaults():
    rates = {rate for rate, _ in groups_of('segmentor').values()}
    assert rates == {1.0}


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(layer_decy_rate=0.5), 'layer_decy_rate=0.5'),
        (dict(norm_decay_mult=1.0), 'norm_decay_mult=1.0'),
        (dict(layer_decay_rate='.5'), 'expected a number above 0'),
        (dict(layer_decay_rate=0), 'expected a number above 0'),
    ],
)
def test_options_that_would_do_nothing(options, sentence):
    with pytest.raises(SetupError, match=sentence):
        groups_of('segmentor', **options)


def test_keys_of_other_recipes_that_agree():
    assert groups_of('segmentor', norm_decay_mult=0.0) == groups_of('segmentor')


def test_a_backbone_without_layers():
    model = torch.nn.Module()
    model.backbone = torch.nn.Conv2d(1, 1, 1)
    build = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='SGD', lr=0.1)), dict(layer_decay_rate=0.5)
    )
    with pytest.raises(SetupError, match='needs a backbone of swinv2_mm, and this is Conv2d'):
        build(model)
