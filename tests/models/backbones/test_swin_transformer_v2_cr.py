"""Compare `SwinTransformerV2CR` to timm's `swinv2_cr_*`, and test its options."""

from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.checkpoints import load_pretrained
from swinv2_mm.models.layers import SwinBlock, WindowAttentionCR

NANO = dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2])


def nano(**options):
    return SwinTransformerV2CR(NANO, **{'window_size': 4, 'out_indices': (0, 1), **options})


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def lively(model):
    """Set random weights with the scale of trained ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 'logit_scale' in name:
                parameter.copy_(2 + 0.5 * noise)
            elif 'meta_mlp' in name:
                parameter.copy_(noise / (1 if parameter.shape[-1] == 2 else 16))
            elif parameter.dim() == 1 and name.endswith('weight'):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.02 * noise)
    return model.eval()


def timm_features(model, image):
    x = model.patch_embed(image)
    maps = []
    for stage in model.stages:
        x = stage(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(
    ('name', 'options', 'window', 'size'),
    [
        ('swinv2_cr_tiny_ns_224', {}, 7, (224, 224)),
        ('swinv2_cr_small_224', {}, 7, (224, 224)),
        ('swinv2_cr_tiny_ns_224', dict(img_size=(224, 448)), (7, 14), (224, 448)),
        ('swinv2_cr_tiny_224', dict(img_size=(448, 224), window_size=7), 7, (448, 224)),
    ],
)
def test_equals_timm(name, options, window, size, tmp_path):
    peer = lively(timm.create_model(name, num_classes=0, **options))
    torch.save(peer.state_dict(), tmp_path / 'peer.pth')
    ours = SwinTransformerV2CR(
        'small' if 'small' in name else 'tiny',
        window_size=window,
        stage_norms='all' if '_ns_' in name else 'last',
        norm_cfg=None,
    ).eval()
    report = load_pretrained(ours, tmp_path / 'peer.pth')
    assert len(report.loaded) == len(list(peer.parameters())) == len(list(ours.parameters()))
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps, expected = ours(image), timm_features(peer, image)
    assert len(maps) == len(expected) == 4
    for mine, theirs in zip(maps, expected):
        assert relative_error(mine, theirs) < 1e-5


def test_shares_blocks_and_names_with_the_main_backbone():
    model = nano()
    blocks = [module for module in model.modules() if isinstance(module, SwinBlock)]
    assert len(blocks) == 4
    assert all(type(block) is SwinBlock for block in blocks)
    assert all(isinstance(block.attn, WindowAttentionCR) for block in blocks)
    main = SwinTransformerV2(NANO, out_indices=(0, 1))
    own = {name for name in model.state_dict() if 'meta_mlp' not in name}
    theirs = {name for name in main.state_dict() if 'cpb_mlp' not in name}
    norms = {'layers.1.blocks.1.norm3.weight', 'layers.1.blocks.1.norm3.bias'}
    assert {name for name in own - theirs if not name.endswith('attn.qkv.bias')} == norms
    assert {name.rsplit('.')[-1] for name in theirs - own} == {
        'q_bias',
        'v_bias',
        'pretrained_window_sizes',
    }


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('prefix', ['', 'swinv2_mm.'])
def test_builds_under_every_scope(scope, prefix):
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type=f'{prefix}SwinTransformerV2CR', arch=NANO, out_indices=(1,)))
    assert isinstance(model, SwinTransformerV2CR)


@pytest.mark.parametrize(
    ('choice', 'normed'), [('none', []), ('last', [(1, 1)]), ('all', [(0, 1), (1, 1)])]
)
def test_stage_norms(choice, normed):
    model = nano(stage_norms=choice)
    assert normed == [
        (stage, index)
        for stage, layer in enumerate(model.layers)
        for index, block in enumerate(layer.blocks)
        if block.norm3 is not None
    ]


def test_windows_that_are_not_shifted_never_touch(randomize):
    """Tokens of different windows interact only if windows are shifted."""
    image = torch.randn(1, 3, 16, 32)
    other = image.clone()
    other[..., 16:] += 1
    for shift_windows in (True, False):
        model = randomize(nano(shift_windows=shift_windows, out_indices=(0,))).eval()
        with torch.no_grad():
            left = [model(item)[0][..., :4] for item in (image, other)]
        assert torch.equal(*left) is not shift_windows


@pytest.mark.parametrize('temperature', ['tau', 'logit_scale'])
def test_starts_as_the_repositories_do(temperature):
    model = nano(temperature=temperature, init_values=None if temperature == 'tau' else 1e-5)
    for layer in model.layers:
        for block in layer.blocks:
            expected = 1.0 if temperature == 'tau' else 10.0
            torch.testing.assert_close(
                block.attn.scale(), torch.full_like(block.attn.scale(), expected)
            )
            start = 1.0 if temperature == 'tau' else 1e-5
            assert block.norm1.weight.eq(start).all() and block.norm2.weight.eq(start).all()
            assert block.attn.qkv.bias.eq(0).all()


def test_the_scale_never_exceeds_100():
    for temperature, value in (('tau', 1e-4), ('logit_scale', 7.0)):
        attention = nano(temperature=temperature).layers[0].blocks[0].attn
        torch.nn.init.constant_(getattr(attention, temperature), value)
        torch.testing.assert_close(attention.scale(), torch.full((1, 1, 1), 100.0))


def test_every_parameter_learns(randomize):
    model = randomize(nano(meta_drop_rate=0.1)).train()
    sum(item.square().mean() for item in model(torch.randn(2, 3, 30, 41))).backward()
    # A bias common to all keys does not change a softmax.
    flat = {name for name, value in model.named_parameters() if not value.grad.abs().max() > 1e-12}
    assert not {name for name in flat if not name.endswith('meta_mlp.fc2.bias')}
    assert len(list(model.parameters())) > 40


@pytest.mark.parametrize('temperature', ['tau', 'logit_scale'])
def test_the_schedules_of_this_project_do_not_decay_bias_mlp_and_temperature(temperature):
    base = Path(__file__).parents[3] / 'configs/_base_/schedules/adamw.py'
    model = nano(temperature=temperature)
    optimizer = build_optim_wrapper(model, Config.fromfile(base).optim_wrapper).optimizer
    decay = {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    kinds = {temperature: 4, 'meta_mlp': 16, 'qkv.weight': 4}
    for kind, count in kinds.items():
        found = [decay[p] for name, p in model.named_parameters() if kind in name]
        assert len(found) == count
        assert set(found) == {0.05 if kind == 'qkv.weight' else 0.0}


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            dict(temperature='warm'),
            ValueError,
            "temperature is 'warm': expected one of logit_scale, tau",
        ),
        (dict(stage_norms='first'), ValueError, "stage_norms is 'first'"),
        (dict(meta_hidden_dims=0), ValueError, 'meta_hidden_dims is 0'),
        (dict(meta_drop_rate=1.0), ValueError, 'meta_drop_rate is 1.0'),
        (dict(pretrained_window_sizes=8), TypeError, 'has no pretrained_window_sizes'),
        (dict(windows=8), TypeError, "unexpected keyword argument 'windows'"),
    ],
)
def test_wrong_options_are_plain_errors(options, error, message):
    with pytest.raises(error, match=message):
        nano(**options)
