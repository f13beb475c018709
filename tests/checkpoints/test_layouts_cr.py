"""Test loading and converting weights of the original repository and of timm's `swinv2_cr_*`."""

import pytest
import timm
import torch
from naive_seed import naive_seed_features, seed_state

from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.checkpoints import CheckpointError, load_pretrained
from swinv2_mm.checkpoints.convert import convert_checkpoint, convert_state
from swinv2_mm.checkpoints.detect import find_backbone
from swinv2_mm.checkpoints.layouts import LAYOUTS
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.table import translate

SIZE = dict(embed_dims=8, depths=[2, 1, 3], num_heads=[1, 2, 4])
SEED_OPTIONS = dict(temperature='tau', meta_hidden_dims=256, stage_norms='none', init_values=None)


def cr(**options):
    return SwinTransformerV2CR(
        SIZE, **{'window_size': 4, 'out_indices': (0, 1, 2), 'norm_cfg': None, **options}
    )


@pytest.fixture
def seed_file(tmp_path):
    """Return a backbone file of the repository."""
    path = tmp_path / 'best_model_backbone.pt'
    torch.save(seed_state(**SIZE), path)
    return path


def timm_cr(**options):
    """Return timm's model at the same size, with weights of moderate scale."""
    model = timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr(
        img_size=64, window_size=4, embed_dim=8, depths=(2, 1, 3), num_heads=(1, 2, 4), **options
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize('size', [(64, 64), (61, 90), (3, 50)])
def test_a_backbone_file_of_the_repository_loads_whole_and_computes_the_same(seed_file, size):
    model = cr(**SEED_OPTIONS).eval()
    report = load_pretrained(model, seed_file)
    assert report.layout == 'seed'
    assert len(report.loaded) == len(list(model.parameters()))
    assert set(report.dropped) == {'derived tables'} and not report.allowed
    image = torch.randn(2, 3, *size)
    expected = naive_seed_features(
        torch.load(seed_file), SIZE['depths'], SIZE['num_heads'], [(4, 4)] * 3, image
    )
    with torch.no_grad():
        for mine, theirs in zip(model.double()(image.double()), expected):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_classifier_file_of_the_repository_loads_the_same(seed_file, tmp_path):
    state = {f'model.{key}': value for key, value in torch.load(seed_file).items()}
    head = {
        'classification_head.weight': torch.ones(10, 32),
        'classification_head.bias': torch.ones(10),
    }
    content = {'model': {**state, **head}, 'acc': 0.5, 'epoch': 3, 'optimizer': {'state': {}}}
    torch.save(content, tmp_path / 'best_model.pt')
    ours, theirs = cr(**SEED_OPTIONS), cr(**SEED_OPTIONS)
    report = load_pretrained(ours, tmp_path / 'best_model.pt')
    assert report.prefix == 'model.'
    assert sorted(report.dropped['outside the backbone']) == sorted(head)
    load_pretrained(theirs, seed_file)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


def convert(state, to):
    found = find_backbone(state, 'the file')
    return found.layout.name, convert_state(found, to, LoadReport('the file', '', ''))


@pytest.mark.parametrize('kind', ['seed', 'timm-cr'])
def test_there_and_back_bit_for_bit(kind):
    theirs = seed_state(**SIZE) if kind == 'seed' else timm_cr(extra_norm_stage=True).state_dict()
    name, ours = convert(theirs, 'native')
    assert name == kind
    name, again = convert(ours, kind)
    assert name == 'native-cr'
    derived = ('relative_coordinates_log', 'attention_mask')
    kept = {key for key in theirs if not key.endswith(derived) and not key.startswith('head.')}
    assert len(kept) > 70 and set(again) == kept
    for key in kept:
        assert again[key].shape == theirs[key].shape and torch.equal(again[key], theirs[key]), key
    for key, value in convert(again, 'native')[1].items():
        assert torch.equal(value, ours[key]), key


def test_what_timm_gets_back_it_loads_and_computes_the_same():
    peer = timm_cr(num_classes=0)
    _, ours = convert(peer.state_dict(), 'native')
    _, theirs = convert(ours, 'timm-cr')
    again = timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr(
        img_size=64,
        window_size=4,
        embed_dim=8,
        depths=(2, 1, 3),
        num_heads=(1, 2, 4),
        num_classes=0,
    ).eval()
    again.load_state_dict(theirs, strict=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), peer(image))


def test_from_the_repository_to_timm_the_temperature_becomes_its_logarithm():
    state = seed_state(**SIZE)
    name = 'stages.0.blocks.0.'
    _, theirs = convert(state, 'timm-cr')
    scale = theirs[name + 'attn.logit_scale']
    assert scale.shape == (1,)
    tau = state[name + 'window_attention.tau'].flatten().clamp(min=0.01)
    torch.testing.assert_close(scale.exp(), 1 / tau)
    _, back = convert(theirs, 'seed')
    torch.testing.assert_close(back[name + 'window_attention.tau'].flatten(), tau)


@pytest.mark.parametrize('temperature', ['tau', 'logit_scale'])
def test_a_file_with_the_other_temperature_computes_the_same(temperature, seed_file, tmp_path):
    other = {'tau': 'logit_scale', 'logit_scale': 'tau'}[temperature]
    own = cr(**{**SEED_OPTIONS, 'temperature': temperature}).eval()
    load_pretrained(own, seed_file)
    torch.save(own.state_dict(), tmp_path / 'native.pth')
    image = torch.randn(1, 3, 40, 50)
    for file in (seed_file, tmp_path / 'native.pth'):
        crossed = cr(**{**SEED_OPTIONS, 'temperature': other}).eval()
        report = load_pretrained(crossed, file)
        assert len(report.loaded) == len(list(crossed.parameters()))
        with torch.no_grad():
            for mine, theirs in zip(crossed(image), own(image)):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_files_of_timm_from_before_the_logarithm(tmp_path):
    state = {}
    for key, value in timm_cr().state_dict().items():
        state[key.replace('logit_scale', 'tau')] = value.abs() if 'logit_scale' in key else value
    torch.save(state, tmp_path / 'old.pth')
    options = dict(meta_hidden_dims=384)
    tau, scale = cr(temperature='tau', **options), cr(**options)
    load_pretrained(tau, tmp_path / 'old.pth')
    load_pretrained(scale, tmp_path / 'old.pth')
    own = tau.layers[2].blocks[1].attn
    assert torch.equal(own.tau.flatten(), state['stages.2.blocks.1.attn.tau'])
    torch.testing.assert_close(scale.layers[2].blocks[1].attn.scale(), own.scale())


def test_a_file_of_one_family_names_the_backbone_of_the_other(seed_file, tmp_path, nano):
    main = nano()
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(main, seed_file)
    assert "this is a SwinTransformerV2: build type='swinv2_mm.SwinTransformerV2CR' for it" in str(
        caught.value
    )
    torch.save(timm_cr().state_dict(), tmp_path / 'timm.pth')
    with pytest.raises(CheckpointError, match=r"build type='swinv2_mm\.SwinTransformerV2CR'"):
        main.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pth'))
        main.init_weights()
    torch.save(main.state_dict(), tmp_path / 'main.pth')
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(cr(), tmp_path / 'main.pth')
    assert "this is a SwinTransformerV2CR: build type='swinv2_mm.SwinTransformerV2' for it" in str(
        caught.value
    )
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('to', ['native', 'native-cr', 'timm-cr', 'seed'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_converted_file_gives_the_features_of_its_source(to, suffix, seed_file, tmp_path):
    target = tmp_path / f'converted{suffix}'
    convert_checkpoint(seed_file, target, to)
    ours, again = cr(**SEED_OPTIONS).eval(), cr(**SEED_OPTIONS, window_size=7).eval()
    load_pretrained(ours, seed_file)
    report = load_pretrained(again, target)
    assert report.layout == {'native': 'native-cr'}.get(to, to)
    again.update_resolution(4)
    image = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        for mine, theirs in zip(again(image), ours(image)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_layout_of_the_other_family_is_refused_with_those_that_fit(seed_file, tmp_path):
    with pytest.raises(CheckpointError, match='choose one of native-cr, timm-cr, seed'):
        convert_checkpoint(seed_file, tmp_path / 'out.pth', 'timm')


CR_LAYOUTS = [layout for layout in LAYOUTS if layout.family == 'cr']


@pytest.mark.parametrize('layout', CR_LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize('temperature', ['tau', 'logit_scale'])
def test_every_layout_names_every_tensor_of_a_backbone(layout, temperature):
    names = [name for name, _ in cr(temperature=temperature, stage_norms='none').named_parameters()]
    theirs, unknown = translate(names, layout, to_ours=False)
    assert unknown == {}
    ours, _ = translate(theirs, layout, to_ours=True, wanted=names)
    assert set(ours) == set(names)


def test_weights_of_a_trained_detector_are_found_again(tmp_path):
    model = cr(norm_cfg=dict(type='LN'))
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    torch.save({'state_dict': {**state, 'neck.weight': torch.ones(1)}}, tmp_path / 'epoch_1.pth')
    report = load_pretrained(cr(norm_cfg=dict(type='LN')), tmp_path / 'epoch_1.pth')
    assert (report.layout, report.prefix) == ('native-cr', 'backbone.')
    assert len(report.loaded) == len(model.state_dict())
    assert isinstance(model, SwinTransformerV2)
