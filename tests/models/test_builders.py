"""Test the builders with the keywords of ChristophReich1996/Swin-Transformer-V2."""

import inspect

import pytest
import torch
from naive_seed import seed_shapes

import swinv2_mm.models as models
from swinv2_mm.checkpoints.layouts import layout_by_name
from swinv2_mm.checkpoints.table import translate
from swinv2_mm.models import SwinTransformerV2, SwinTransformerV2CR, swin_transformer_v2_t

BUILDERS = {letter: getattr(models, f'swin_transformer_v2_{letter}') for letter in 'tsblhg'}


@pytest.mark.parametrize('variant', ['v2', 'cr'])
def test_the_usage_of_the_repository(variant):
    """Examples of its README, with the import changed."""
    swin_transformer: SwinTransformerV2 = swin_transformer_v2_t(
        in_channels=3,
        window_size=8,
        input_resolution=(256, 256),
        sequential_self_attention=False,
        use_checkpoint=False,
        variant=variant,
    )
    assert isinstance(swin_transformer, SwinTransformerV2)
    assert isinstance(swin_transformer, SwinTransformerV2CR) == (variant == 'cr')
    with torch.no_grad():
        features = swin_transformer(torch.rand(1, 3, 256, 256))
    assert type(features) is list
    sides = (64, 32, 16, 8)
    channels = (96, 192, 384, 768)
    assert [tuple(item.shape) for item in features] == [
        (1, c, s, s) for c, s in zip(channels, sides)
    ]
    assert swin_transformer.input_resolution == (256, 256)
    swin_transformer.update_resolution(new_window_size=16, new_input_resolution=(512, 512))
    assert swin_transformer.input_resolution == (512, 512)
    with torch.no_grad():
        features = swin_transformer(torch.rand(1, 3, 512, 512))
    assert [tuple(item.shape) for item in features] == [
        (1, c, 2 * s, 2 * s) for c, s in zip(channels, sides)
    ]


@pytest.mark.parametrize('letter', BUILDERS)
def test_sizes(letter):
    with torch.device('meta'):
        main, cr = BUILDERS[letter]((256, 256)), BUILDERS[letter]((256, 256), variant='cr')
        plain = SwinTransformerV2(letter, window_size=7, norm_cfg=None)
    assert set(main.state_dict()) == set(plain.state_dict())
    depths = {'t': (2, 2, 6, 2), 'g': (2, 2, 42, 2)}.get(letter, (2, 2, 18, 2))
    heads = dict(t=3, s=3, b=4, l=6, h=11, g=16)[letter]
    embed_dims = dict(t=96, s=96, b=128, l=192, h=352, g=512)[letter]
    shapes = seed_shapes(embed_dims, depths, [heads * 2**stage for stage in range(4)])
    # Parameters of the model of the repository, with our names.
    recipes, unknown = translate(shapes, layout_by_name('seed'), to_ours=True)
    assert not unknown
    assert set(recipes) == set(dict(cr.named_parameters()))
    theirs = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
    for name, recipe in recipes.items():
        assert recipe.make(theirs).shape == cr.get_parameter(name).shape, name


def test_keywords_reach_the_backbone():
    model = swin_transformer_v2_t(
        (64, 96),
        4,
        1,
        use_checkpoint=True,
        sequential_self_attention=True,
        use_deformable_block=True,
        dropout=0.1,
        dropout_path=0.3,
        patch_size=2,
        ff_feature_ratio=2,
    )
    block = model.layers[3].blocks[1]
    assert model.window_sizes[0] == (4, 4) and model.in_channels == 1
    assert model.pos_drop.p == block.attn.proj_drop.p == 0.1
    assert block.drop_path.drop_prob == pytest.approx(0.3)
    assert block.attn.sequential and model.layers[3].with_cp
    assert block.mlp.fc1.out_features == 2 * 768
    assert model.out_strides == (2, 4, 8, 16)
    assert hasattr(block, 'offset_network') and not hasattr(
        model.layers[0].blocks[0], 'offset_network'
    )
    model = swin_transformer_v2_t(dropout_attention=0.2)
    assert model.layers[0].blocks[0].attn.attn_drop == 0.2
    assert model.input_resolution is None


def test_defaults_are_those_of_the_repository():
    parameters = inspect.signature(models.swin_transformer_v2).parameters
    defaults = {name: item.default for name, item in parameters.items()}
    expected = dict(
        window_size=7,
        in_channels=3,
        use_checkpoint=False,
        sequential_self_attention=False,
        use_deformable_block=False,
        dropout=0.0,
        dropout_attention=0.0,
        dropout_path=0.2,
        patch_size=4,
        ff_feature_ratio=4,
    )
    assert {name: defaults[name] for name in expected} == expected
    assert list(parameters)[1:6] == [
        'input_resolution',
        'window_size',
        'in_channels',
        'use_checkpoint',
        'sequential_self_attention',
    ]


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(windows=8), TypeError, "unexpected keyword argument 'windows'"),
        (dict(variant='seed'), ValueError, "variant is 'seed': expected one of v2, cr"),
        (dict(input_resolution=(0, 3)), ValueError, r'input_resolution is \(0, 3\)'),
        (dict(input_resolution='big'), TypeError, "input_resolution has the entry 'big'"),
    ],
)
def test_wrong_keywords_are_plain_errors(options, error, message):
    with pytest.raises(error, match=message):
        swin_transformer_v2_t(**options)
