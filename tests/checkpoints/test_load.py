"""Test detection of layouts and the report of loaded weights."""

import logging
import math
import re

import pytest
import torch
from mmengine.logging import MMLogger

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import CheckpointError, load_pretrained


def weights(backbone):
    """Return its tensors in the official layout, with changed values."""
    torch.manual_seed(7)
    state = {}
    for name, value in backbone.state_dict().items():
        if not name.startswith('norm') and name != 'pretrained_window_sizes':
            state[name] = value + torch.randn_like(value)
    return state


def official(state, window=4):
    """Return a classifier as the official code saves it: weights, buffers, final norm and head."""
    side = torch.arange(1.0 - window, window) / (window - 1) * 8
    coords = torch.stack(torch.meshgrid(side, side, indexing='ij'), dim=-1)[None]
    coords = coords.sign() * (coords.abs() + 1).log2() / math.log2(8)
    content = dict(state)
    for key in state:
        if key.endswith('logit_scale'):
            attention = key.removesuffix('logit_scale')
            content[attention + 'relative_coords_table'] = coords
            content[attention + 'relative_position_index'] = torch.zeros(16, 16, dtype=torch.int64)
            content[attention.removesuffix('attn.') + 'attn_mask'] = torch.zeros(4, 16, 16)
    content |= {'norm.weight': torch.ones(32), 'norm.bias': torch.ones(32)}
    content |= {'head.weight': torch.ones(10, 32), 'head.bias': torch.ones(10)}
    return content


def simmim(state):
    """Return the weights as SimMIM's pre-training saves them."""
    content = {
        f'encoder.{key.replace("cpb_mlp", "rpe_mlp")}': value
        for key, value in official(state).items()
        if not key.startswith('head')
    }
    content['encoder.mask_token'] = torch.zeros(1, 1, 8)
    content |= {'decoder.0.weight': torch.zeros(9, 32, 1, 1), 'decoder.0.bias': torch.zeros(9)}
    return content


def assert_holds(backbone, state):
    own = backbone.state_dict()
    assert len(state) > 50
    for key, value in state.items():
        assert torch.equal(own[key], value), key


@pytest.mark.parametrize(
    ('wrap', 'layout', 'prefix'),
    [
        (lambda state: {'model': official(state)}, 'official', ''),
        (lambda state: {'model': simmim(state), 'epoch': 3, 'optimizer': {}}, 'simmim', 'encoder.'),
        (lambda state: simmim(state), 'simmim', 'encoder.'),
        (
            lambda state: {
                'state_dict': {f'module.{key}': v for key, v in official(state).items()}
            },
            'official',
            'module.',
        ),
        (
            lambda state: {
                'state_dict': {
                    **{f'backbone.{key}': value for key, value in state.items()},
                    'backbone.norm0.weight': torch.full((8,), 3.0),
                    'backbone.norm0.bias': torch.full((8,), 3.0),
                    'backbone.pretrained_window_sizes': torch.full((3, 2), 4),
                    'rpn_head.rpn_conv.weight': torch.zeros(3, 3),
                },
                'meta': {'epoch': 12},
            },
            'native',
            'backbone.',
        ),
    ],
)
def test_layouts_and_wrappers(wrap, layout, prefix, nano, tmp_path):
    state = weights(nano())
    torch.save(wrap(state), tmp_path / 'file.pth')
    backbone = nano(window_size=6)
    report = load_pretrained(backbone, tmp_path / 'file.pth')
    assert (report.layout, report.prefix) == (layout, prefix)
    assert report.windows.windows == ((4, 4),) * 3
    assert_holds(backbone, state)
    if layout == 'native':
        assert (backbone.norm0.weight == 3).all()


def test_the_report_accounts_for_every_tensor_once(nano, tmp_path):
    content = official(weights(nano()))
    torch.save({'model': content}, tmp_path / 'file.pth')
    backbone = nano()
    report = load_pretrained(backbone, tmp_path / 'file.pth')
    dropped = [key for keys in report.dropped.values() for key in keys]
    assert sorted(report.loaded + dropped) == sorted(content)
    assert sorted(report.loaded + report.fresh) == sorted(dict(backbone.named_parameters()))
    assert sorted(report.dropped['head']) == [
        'head.bias',
        'head.weight',
        'norm.bias',
        'norm.weight',
    ]
    assert report.fresh == [f'norm{i}.{leaf}' for i in range(3) for leaf in ('bias', 'weight')]


def test_every_load_logs_one_table(nano, tmp_path):
    torch.save({'model': official(weights(nano()))}, tmp_path / 'file.pth')
    logger = MMLogger.get_instance('test_load', logger_name='test_load')
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record)
    logger.addHandler(handler)
    load_pretrained(nano(window_size=7), tmp_path / 'file.pth', logger=logger)
    assert len(seen) == 1
    text = seen[0].getMessage()
    for part in ('file.pth', 'official', '[4, 4, 4]', '[7, 7, 7]', 'missing', 'unexpected'):
        assert part in text
    assert 'head.weight' in text and 'relative_coords_table' in text


def test_output_norms_keep_their_initial_values(nano, tmp_path):
    torch.save({'model': official(weights(nano()))}, tmp_path / 'file.pth')
    backbone = nano()
    load_pretrained(backbone, tmp_path / 'file.pth')
    assert (backbone.norm2.weight == 1).all()


def test_stages_that_the_model_does_not_have_are_left_out(nano, tmp_path):
    state = weights(nano())
    torch.save({'model': official(state)}, tmp_path / 'file.pth')
    backbone = nano(out_indices=(1,))
    report = load_pretrained(backbone, tmp_path / 'file.pth')
    left_out = report.dropped['stages and norms that the model does not have']
    assert 'layers.1.downsample.reduction.weight' in left_out
    assert any(key.startswith('layers.2.') for key in left_out)
    assert_holds(backbone, {key: value for key, value in state.items() if key not in left_out})


def test_missing_weights_are_an_error_that_changes_nothing(nano, tmp_path):
    state = official(weights(nano()))
    del state['layers.2.blocks.1.mlp.fc1.weight'], state['patch_embed.norm.bias']
    torch.save(state, tmp_path / 'file.pth')
    backbone = nano()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r'missing: 2 \(layers.2.blocks.1.mlp.fc1.weight, patch'
    ) as caught:
        load_pretrained(backbone, tmp_path / 'file.pth')
    assert 'layout' in str(caught.value)  # the report includes the table
    assert_holds(backbone, before)


@pytest.mark.parametrize(
    ('spoil', 'problem'),
    [
        (
            lambda s: s.update({'patch_embed.proj.weight': torch.zeros(8, 1, 4, 4)}),
            'shape mismatch',
        ),
        (lambda s: s.update({'absolute_pos_embed': torch.zeros(1, 49, 8)}), 'unexpected'),
        (lambda s: s.pop('layers.0.blocks.0.attn.q_bias'), 'missing'),
        (lambda s: s['layers.1.downsample.norm.bias'].fill_(float('nan')), 'NaN'),
    ],
)
def test_what_is_wrong_can_be_allowed_by_name(spoil, problem, nano, tmp_path):
    state = official(weights(nano()))
    spoil(state)
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(nano(), tmp_path / 'file.pth')
    allow = [
        r'patch_embed\.proj\.weight$',
        'absolute_pos',
        r'layers\.0\.blocks\.0\.attn\.q_bias',
        r'layers\.1\.down',
    ]
    matching = [
        pattern
        for pattern, what in zip(allow, ('shape mismatch', 'unexpected', 'missing', 'NaN'))
        if what == problem
    ]
    backbone = nano()
    report = load_pretrained(backbone, tmp_path / 'file.pth', allow=matching)
    assert len(report.allowed) == 1
    assert all(value.isfinite().all() for value in backbone.state_dict().values())


def test_a_permission_that_permits_nothing_is_an_error(nano, tmp_path):
    torch.save(official(weights(nano())), tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match="allow='patch_embd' names nothing"):
        load_pretrained(nano(), tmp_path / 'file.pth', allow=['patch_embd'])
    with pytest.raises(TypeError, match='expected a list'):
        load_pretrained(nano(), tmp_path / 'file.pth', allow='patch_embed')


def two_models(nano):
    """Return the weights of two backbones that differ everywhere."""
    first = weights(nano())
    return first, {key: value + 1 for key, value in first.items()}


def test_two_backbones_in_one_file_need_a_choice(nano, tmp_path):
    first, second = two_models(nano)
    both = {f'left.{key}': value for key, value in official(first).items()}
    both |= {f'right.{key}': value for key, value in official(second).items()}
    torch.save(both, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r"'left.', 'right.': choose one with prefix"):
        load_pretrained(nano(), tmp_path / 'file.pth')
    backbone = nano()
    load_pretrained(backbone, tmp_path / 'file.pth', prefix='right')
    assert_holds(backbone, second)


@pytest.mark.parametrize(
    ('raw', 'averaged'), [('student.', 'teacher.'), ('online.', 'model_ema.'), ('', 'ema.')]
)
def test_averaged_weights_go_before_raw_ones_of_another_prefix(nano, tmp_path, raw, averaged):
    first, second = two_models(nano)
    both = {f'{raw}{key}': value for key, value in official(first).items()}
    both |= {f'{averaged}{key}': value for key, value in official(second).items()}
    torch.save(both, tmp_path / 'file.pth')
    backbone = nano()
    report = load_pretrained(backbone, tmp_path / 'file.pth')
    assert_holds(backbone, second)
    assert f'EMA; the others: prefix={raw!r}' in report.table()
    if raw:
        load_pretrained(backbone, tmp_path / 'file.pth', prefix=raw)
        assert_holds(backbone, first)


@pytest.mark.parametrize('averaged', ['state_dict_ema', 'model_ema', 'ema'])
@pytest.mark.parametrize('raw', ['state_dict', 'model'])
def test_averaged_weights_go_before_raw_ones_of_another_dict(nano, tmp_path, raw, averaged):
    models = two_models(nano)
    first, second = (
        {f'module.backbone.{key}': value for key, value in official(state).items()}
        for state in models
    )
    content = {raw: first, averaged: {'module': second} if averaged == 'ema' else second}
    torch.save(content, tmp_path / 'file.pth')
    backbone = nano()
    report = load_pretrained(backbone, tmp_path / 'file.pth')
    assert_holds(backbone, models[1])
    assert f"EMA, under '{averaged}'; the others: prefix='{raw}'" in report.table()
    for prefix in (raw, f'{raw}.', f'{raw}.module.backbone.'):
        report = load_pretrained(backbone, tmp_path / 'file.pth', prefix=prefix)
        assert_holds(backbone, models[0])
        assert 'EMA' not in report.table()


def test_a_few_numbers_of_the_averaging_are_not_a_model(nano, tmp_path):
    state = weights(nano())
    few = {'decay': torch.tensor(0.9), 'updates': torch.tensor(3)}
    torch.save({'model': official(state), 'ema': few, 'state_dict_ema': {}}, tmp_path / 'file.pth')
    backbone = nano()
    assert 'EMA' not in load_pretrained(backbone, tmp_path / 'file.pth').table()
    assert_holds(backbone, state)


def test_students_and_teachers_under_keys_and_parts_of_prefixes(nano, tmp_path):
    first, second = two_models(nano)
    named = [
        {f'backbone.{key}': value for key, value in official(x).items()} for x in (first, second)
    ]
    torch.save({'student': named[0], 'teacher': named[1]}, tmp_path / 'file.pth')
    backbone = nano()
    load_pretrained(backbone, tmp_path / 'file.pth')
    assert_holds(backbone, second)
    load_pretrained(backbone, tmp_path / 'file.pth', prefix='student')
    assert_holds(backbone, first)
    both = {f'student.{key}': value for key, value in named[0].items()}
    torch.save(
        both | {f'teacher.{key}': value for key, value in named[1].items()}, tmp_path / 'file.pth'
    )
    load_pretrained(backbone, tmp_path / 'file.pth', prefix='student')
    assert_holds(backbone, first)


def test_blocks_that_were_compiled(nano, tmp_path):
    state = weights(nano())
    compiled = {
        re.sub(r'(blocks\.\d+)', r'\1._orig_mod', key): x for key, x in official(state).items()
    }
    torch.save(compiled, tmp_path / 'file.pth')
    backbone = nano()
    load_pretrained(backbone, tmp_path / 'file.pth')
    assert_holds(backbone, state)


def test_raw_weights_alone_are_not_called_averaged(nano, tmp_path):
    torch.save({'model': official(weights(nano())), 'epoch': 3}, tmp_path / 'file.pth')
    assert 'EMA' not in load_pretrained(nano(), tmp_path / 'file.pth').table()


def test_weights_in_half_precision_fill_a_model_in_single(nano, tmp_path):
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in official(weights(nano())).items()
    }
    torch.save(state, tmp_path / 'swinv2_window4_64.pth')
    backbone = nano()
    load_pretrained(backbone, tmp_path / 'swinv2_window4_64.pth')
    assert backbone.patch_embed.proj.weight.dtype == torch.float32
    assert torch.equal(backbone.patch_embed.proj.weight.half(), state['patch_embed.proj.weight'])


def test_init_cfg_loads_any_layout(nano, tmp_path):
    state = weights(nano())
    torch.save({'model': simmim(state)}, tmp_path / 'file.pth')
    backbone = nano(
        window_size=7, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    )
    backbone.init_weights()
    assert_holds(backbone, state)
    assert backbone.init_cfg['type'] == 'Pretrained'  # printed with the model
    assert backbone.state_dict()['pretrained_window_sizes'].tolist() == [[4, 4]] * 3


def test_init_cfg_takes_the_arguments_of_the_loader(nano, tmp_path):
    state = official(weights(nano()))
    state['patch_embed.proj.weight'] = torch.zeros(8, 1, 4, 4)
    torch.save(state, tmp_path / 'file.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'), map_location='cpu')
    with pytest.raises(CheckpointError, match=r'\(8, 1, 4, 4\) instead of \(8, 3, 4, 4\)'):
        nano(init_cfg=cfg).init_weights()
    nano(init_cfg=dict(cfg, allow=['patch_embed.proj.weight'])).init_weights()


def test_a_huge_model_has_norms_on_its_main_branch(tmp_path):
    arch = dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2], extra_norm_every_n_blocks=2)
    backbone = SwinTransformerV2(arch, window_size=4, out_indices=(0, 1))
    state = weights(backbone)
    assert 'layers.1.blocks.1.norm3.weight' in state
    torch.save(official(state), tmp_path / 'file.pth')
    again = SwinTransformerV2(arch, window_size=4, out_indices=(0, 1))
    load_pretrained(again, tmp_path / 'file.pth')
    assert_holds(again, state)


@pytest.mark.parametrize(
    ('spoil', 'problem'),
    [
        (lambda value: value.to(torch.int8), 'torch.int8 for torch.float32'),
        (lambda value: value.to(torch.complex64), 'torch.complex64 for torch.float32'),
        (lambda value: value.to_sparse(), 'torch.sparse_coo, not an array'),
        (lambda value: value.to('meta'), 'without values, not an array'),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'torch.qint8 for'),
    ],
)
def test_what_is_no_array_of_floating_point_numbers_is_an_error(spoil, problem, nano, tmp_path):
    """torch would silently copy the first one into the weights."""
    state = official(weights(nano()))
    key = 'layers.1.blocks.0.mlp.fc1.weight'
    state[key] = spoil(state[key])
    torch.save(state, tmp_path / 'file.pth')
    backbone = nano()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_pretrained(backbone, tmp_path / 'file.pth')
    assert key in str(caught.value)
    assert_holds(backbone, before)


def test_a_backbone_without_values_is_an_error(tmp_path):
    """Copying into it would have no effect."""
    arch = dict(embed_dims=8, depths=[1], num_heads=[1])
    torch.save(SwinTransformerV2(arch, out_indices=(0,)).state_dict(), tmp_path / 'file.pth')
    with torch.device('meta'):
        backbone = SwinTransformerV2(arch, out_indices=(0,))
    with pytest.raises(ValueError, match=r'meta device.*to_empty'):
        load_pretrained(backbone, tmp_path / 'file.pth')
    backbone.to_empty(device='cpu')
    load_pretrained(backbone, tmp_path / 'file.pth')


def test_init_cfg_by_its_full_name_is_no_less_strict(nano, tmp_path):
    state = official(weights(nano()))
    del state['patch_embed.norm.bias']
    torch.save(state, tmp_path / 'file.pth')
    cfg = dict(type='mmengine.Pretrained', checkpoint=str(tmp_path / 'file.pth'))
    with pytest.raises(CheckpointError, match=r'missing: 1 \(patch_embed\.norm\.bias'):
        nano(init_cfg=cfg).init_weights()


def test_a_permission_that_is_no_regular_expression_is_an_error(nano, tmp_path):
    state = official(weights(nano()))
    del state['patch_embed.norm.bias']
    torch.save(state, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError, match=r"allow='\*norm' is not a regular expression"):
        load_pretrained(nano(), tmp_path / 'file.pth', allow=['*norm'])
