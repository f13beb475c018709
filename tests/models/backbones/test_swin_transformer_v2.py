"""Test construction, freezing, modes and inputs of the backbone."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from swinv2_mm import SwinTransformerV2

NANO = dict(embed_dims=8, depths=[1, 2, 1], num_heads=[1, 2, 4])


def nano(**options) -> SwinTransformerV2:
    return SwinTransformerV2(NANO, **{'window_size': 4, 'out_indices': (0, 1, 2), **options})


# ------------------------------------------------------------------ building


@pytest.mark.parametrize(
    ('name', 'channels', 'depths', 'millions'),
    [
        ('tiny', 96, [2, 2, 6, 2], 28),
        ('small', 96, [2, 2, 18, 2], 50),
        ('base', 128, [2, 2, 18, 2], 88),
        ('large', 192, [2, 2, 18, 2], 197),
        ('huge', 352, [2, 2, 18, 2], 658),
        ('giant', 512, [2, 2, 42, 4], 3000),
    ],
)
def test_published_sizes(name, channels, depths, millions):
    """The counts of the paper are rounded and include a classifier of at most 5 million parameters."""
    with torch.device('meta'):
        by_name, by_letter = SwinTransformerV2(name), SwinTransformerV2(name[0])
    assert by_name.out_channels == tuple(channels * 2**stage for stage in range(4))
    assert by_name.out_strides == (4, 8, 16, 32)
    assert [len(layer.blocks) for layer in by_name.layers] == depths
    count = sum(parameter.numel() for parameter in by_name.parameters())
    assert abs(count / 1e6 - millions) < 0.03 * millions
    assert count == sum(parameter.numel() for parameter in by_letter.parameters())


def test_extra_norms_of_huge_and_giant():
    for name, blocks in (('huge', [5, 11, 17]), ('giant', [5, 11, 17, 23, 29, 35, 41])):
        with torch.device('meta'):
            model = SwinTransformerV2(name)
        normed = [
            (stage, index)
            for stage, layer in enumerate(model.layers)
            for index, block in enumerate(layer.blocks)
            if block.norm3 is not None
        ]
        assert normed == [(2, index) for index in blocks]


def test_meta_device_construction_then_real_weights():
    real = nano().eval()
    image = torch.randn(1, 3, 21, 30)
    with torch.device('meta'):
        assigned, empty = nano().eval(), nano().eval()
    assigned.load_state_dict(real.state_dict(), assign=True)
    for mine, theirs in zip(assigned(image), real(image)):
        assert torch.equal(mine, theirs)
    empty.to_empty(device='cpu')
    for parameter in empty.parameters():
        nn.init.constant_(parameter, torch.nan)
    empty.init_weights()
    assert all(parameter.isfinite().all() for parameter in empty.parameters())
    assert all(item.isfinite().all() for item in empty(image))


def test_starts_as_the_official_initialisation():
    model = nano()
    blocks = [block for layer in model.layers for block in layer.blocks]
    assert len(blocks) == 4
    for block in blocks:
        assert block.norm1.weight.eq(0).all() and block.norm2.weight.eq(0).all()
        torch.testing.assert_close(
            block.attn.logit_scale.exp(), torch.full_like(block.attn.logit_scale, 10.0)
        )
        assert block.attn.q_bias.eq(0).all() and block.attn.v_bias.eq(0).all()
        assert 0.015 < block.mlp.fc1.weight.std() < 0.025
    assert model.norm0.weight.eq(1).all()
    assert model.patch_embed.norm.weight.eq(1).all()


def test_parameters_and_their_window_are_saved_and_derived_tensors_are_not():
    model = nano()
    parameters = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == parameters | {'pretrained_window_sizes'}


def test_stages_behind_the_last_output_are_not_built():
    model = nano(out_indices=(1,))
    maps = model(torch.randn(1, 3, 16, 16))
    assert [tuple(item.shape) for item in maps] == [(1, 16, 2, 2)]
    assert len(model.layers) == 2
    maps[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_drop_path_rises_linearly_over_all_blocks():
    model = SwinTransformerV2(NANO, drop_path_rate=0.3, out_indices=(0, 1))
    rates = [block.drop_path.drop_prob for layer in model.layers for block in layer.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_builds_by_name_with_and_without_prefix_in_every_scope(scope):
    registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    for name in ('SwinTransformerV2', 'swinv2_mm.SwinTransformerV2'):
        model = registry.build(
            dict(type=name, arch=NANO, window_size=4, out_indices=[0, 2], norm_cfg=dict(type='LN'))
        )
        assert type(model) is SwinTransformerV2


def test_the_package_imports_without_mmdet_mmseg_mmcv_torchvision_and_timm():
    """The backbone needs torch and mmengine only."""
    code = (
        'import sys\n'
        'absent = ("mmdet", "mmseg", "mmcv", "torchvision", "timm")\n'
        'for name in absent: sys.modules[name] = None\n'
        'import torch, swinv2_mm\n'
        'arch = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2])\n'
        'out = swinv2_mm.SwinTransformerV2(arch, out_indices=(1,))(torch.zeros(1, 3, 9, 9))\n'
        'print(tuple(out[0].shape))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[-2] == '(1, 16, 2, 2)'


# ------------------------------------------------------- freezing and modes


def test_frozen_stages_means_what_it_means_in_mmdet():
    for frozen in range(-1, 4):
        model = nano(frozen_stages=frozen, drop_path_rate=0.5).train()
        trainable = {name for name, item in model.named_parameters() if item.requires_grad}
        expected = set()
        for name, _ in model.named_parameters():
            part, index = name.split('.')[0], name.split('.')[1]
            level = {'patch_embed': 0, 'layers': int(index) + 1 if index.isdigit() else 0}.get(
                part, int(part[-1]) + 1 if part.startswith('norm') else None
            )
            if level > frozen:
                expected.add(name)
        assert trainable == expected
        assert model.patch_embed.training == (frozen < 0)
        assert [layer.training for layer in model.layers] == [stage >= frozen for stage in range(3)]


def test_frozen_stages_stay_frozen_through_train_and_loading():
    model = nano(frozen_stages=2, drop_rate=0.5)
    assert not model.layers[0].training  # from the constructor on
    assert model.train() is model
    model.load_state_dict(model.state_dict())
    model.eval().train()
    assert not model.layers[1].blocks[0].mlp.drop1.training
    assert not model.pos_drop.training
    sum(item.sum() for item in model(torch.randn(2, 3, 16, 16))).backward()
    assert model.patch_embed.proj.weight.grad is None
    assert model.layers[2].blocks[0].attn.qkv.weight.grad is not None


def test_norm_eval_keeps_batch_statistics_still():
    image = torch.randn(2, 3, 32, 32) + 5
    for norm_eval in (True, False):
        model = nano(norm_cfg=dict(type='BN'), norm_eval=norm_eval).train()
        model(image)
        assert model.norm0.training is not norm_eval
        assert model.norm0.running_mean.eq(0).all() == norm_eval


def test_dropout_and_drop_path_act_in_training_only():
    for option in ('drop_rate', 'attn_drop_rate', 'drop_path_rate'):
        rates = {'drop_path_rate': 0.0, option: 0.5}
        model = nano(**rates).train()
        with torch.no_grad():
            for layer in model.layers:
                for block in layer.blocks:
                    block.norm1.weight.fill_(1.0)
                    block.norm2.weight.fill_(1.0)
        image = torch.randn(4, 3, 32, 32)
        assert not torch.equal(model(image)[2], model(image)[2]), option
        model.eval()
        assert torch.equal(model(image)[2], model(image)[2]), option


def test_checkpointing_gives_the_same_gradients(randomize):
    results = []
    for with_cp in (False, True):
        model = randomize(nano(with_cp=with_cp, drop_path_rate=0.0)).train()
        sum(item.square().mean() for item in model(torch.ones(1, 3, 20, 20))).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*results):
        torch.testing.assert_close(plain, recomputed)


def test_copies_and_pickles():
    model = nano().eval()
    image = torch.randn(1, 3, 13, 18)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(clone(image), model(image)))


# -------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(arch='xl'), ValueError, "unknown arch 'xl': choose one of tiny"),
        (dict(arch=7), TypeError, 'arch must be a name or a dict, got int'),
        (dict(arch=dict(embed_dims=8, depths=[1])), ValueError, "lacks \\['num_heads'\\]"),
        (dict(arch=dict(NANO, heads=1)), ValueError, "unknown keys \\['heads'\\]"),
        (dict(arch=dict(NANO, depths=2)), TypeError, 'depths of an arch dict must be a list'),
        (dict(arch=dict(NANO, depths=[1, 2])), ValueError, 'one entry per stage each'),
        (dict(arch=dict(NANO, depths=[1, 0, 1])), ValueError, 'must be integers >= 1'),
        (
            dict(arch=dict(NANO, embed_dims=10, num_heads=[1, 2, 7])),
            ValueError,
            'stage 2 has 40 channels .* 7 heads do not divide',
        ),
        (dict(arch=dict(NANO, extra_norm_every_n_blocks=-1)), ValueError, 'integer >= 0'),
        (dict(window_size=0), ValueError, 'window_size is 0: expected numbers >= 1'),
        (dict(window_size=[8, 0]), ValueError, 'expected numbers >= 1'),
        (dict(window_size=[8, 8, 8, 8, 8]), ValueError, '5 entries: expected .* 4 stages'),
        (dict(window_size='8'), TypeError, "window_size is '8': expected an int"),
        (dict(window_size=[8, 8, 8, (8, 8, 8)]), TypeError, 'has the entry \\(8, 8, 8\\)'),
        (dict(pretrained_window_sizes=-1), ValueError, 'pretrained_window_sizes is -1'),
        (dict(in_channels=0), ValueError, 'in_channels is 0'),
        (dict(patch_size=0), ValueError, 'patch_size is 0'),
        (dict(mlp_ratio=0), ValueError, 'mlp_ratio is 0'),
        (dict(drop_path_rate=1.0), ValueError, 'drop_path_rate is 1.0'),
        (dict(drop_rate=-0.1), ValueError, 'drop_rate is -0.1'),
        (dict(out_indices=(0, 4)), ValueError, 'out of 0 to 3'),
        (dict(out_indices=()), ValueError, 'out_indices is \\(\\)'),
        (dict(out_indices=(1, 0)), ValueError, 'in rising order'),
        (dict(out_indices=3), TypeError, 'out_indices is 3: expected a list'),
        (dict(frozen_stages=5), ValueError, 'frozen_stages is 5: expected -1'),
        (dict(norm_cfg=dict(type='IN')), ValueError, "type 'IN'"),
        (dict(attn_backend='cuda'), ValueError, "unknown attention backend 'cuda'"),
        (dict(img_size=224), TypeError, 'img_size'),
    ],
)
def test_bad_options_are_refused_with_value_and_remedy(options, error, message):
    with pytest.raises(error, match=message), torch.device('meta'):
        SwinTransformerV2(**options)


@pytest.mark.parametrize(
    ('image', 'error', 'message'),
    [
        (torch.zeros(1, 4, 8, 8), ValueError, 'expected 3 channels, got 4 .* in_channels=4'),
        (torch.zeros(3, 8, 8), ValueError, r'\(B, 3, H, W\), got \(3, 8, 8\).*x\[None\]'),
        (torch.zeros(0, 3, 8, 8), ValueError, 'empty batch'),
        (torch.zeros(1, 3, 0, 8), ValueError, 'empty batch'),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, 'torch.uint8.*data preprocessor'),
        ([1, 2], TypeError, 'got list'),
    ],
)
def test_bad_images_are_refused_with_value_and_remedy(image, error, message):
    with pytest.raises(error, match=message):
        nano()(image)


def test_two_stage_models_take_a_pair_as_height_and_width():
    arch = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2])
    as_pair = SwinTransformerV2(arch, window_size=(4, 2), out_indices=(0, 1))
    per_stage = SwinTransformerV2(arch, window_size=[(4, 4), (2, 2)], out_indices=(0, 1))
    assert [layer.blocks[0].window_size for layer in as_pair.layers] == [(4, 2), (4, 2)]
    assert [layer.blocks[0].window_size for layer in per_stage.layers] == [(4, 4), (2, 2)]
