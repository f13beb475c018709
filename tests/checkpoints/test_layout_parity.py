"""Test weights of other libraries in our backbone: equal features, and equal weights after the round trip."""

import shutil

import pytest
import torch
from peer_models import (
    CASES,
    ELSEWHERE,
    give_weights,
    image_for,
    run_peer,
    stage_windows,
    timm_features,
    timm_model,
    torchvision_features,
    torchvision_model,
    why_missing,
)

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import load_pretrained, read_checkpoint_file
from swinv2_mm.checkpoints.convert import convert_checkpoint, convert_state
from swinv2_mm.checkpoints.detect import find_backbone, unwrap
from swinv2_mm.checkpoints.report import LoadReport


def assert_equal_features(ours, theirs):
    assert len(ours) == len(theirs) == 4
    for stage in range(4):
        assert ours[stage].shape == theirs[stage].shape
        error = (ours[stage] - theirs[stage]).abs().max() / theirs[stage].abs().max()
        assert error < 1e-5, f'stage {stage}: {error:.1e}'


def check_loads_and_agrees(library, arch, window, file, expected, norm_cfg=None):
    windows = stage_windows(library, window)
    backbone = SwinTransformerV2(arch, window_size=windows, norm_cfg=norm_cfg).eval()
    report = load_pretrained(backbone, file)
    assert [pair[0] for pair in report.windows.windows] == windows
    assert len(report.loaded) == len(list(backbone.parameters()))
    with torch.no_grad():
        assert_equal_features(backbone(image_for(library, window)), expected)


@pytest.mark.parametrize(('arch', 'window'), CASES)
def test_timm(arch, window, tmp_path):
    model = give_weights(timm_model(arch, window))
    file = tmp_path / f'swinv2_{arch}_window{window}_256.pth'  # timm's files do not contain tables
    torch.save(model.state_dict(), file)
    with torch.no_grad():
        expected = timm_features(model, image_for('timm', window))
    check_loads_and_agrees('timm', arch, window, file, expected)


def test_timm_features_only(tmp_path):
    model = give_weights(timm_model('tiny', 16, features_only=True))
    file = tmp_path / 'swinv2_tiny_window16_256.pth'
    torch.save(model.state_dict(), file)
    with torch.no_grad():
        expected = [stage.permute(0, 3, 1, 2) for stage in model(image_for('timm', 16))]
    check_loads_and_agrees('timm', 'tiny', 16, file, expected)
    assert_there_and_back(file, 'timm-features')


@pytest.mark.parametrize(('arch', 'window'), CASES)
def test_torchvision(arch, window, tmp_path):
    model = give_weights(torchvision_model(arch, window))
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    with torch.no_grad():
        expected = torchvision_features(model, image_for('torchvision', window))
    check_loads_and_agrees('torchvision', arch, window, tmp_path / 'model.pth', expected)


@pytest.fixture(scope='module', params=ELSEWHERE)
def peer_files(request, tmp_path_factory):
    library = request.param
    if why_missing(library):
        pytest.skip(why_missing(library))
    folder = tmp_path_factory.mktemp(library)
    run_peer(library, folder)
    yield library, folder
    shutil.rmtree(folder)  # about a gigabyte


@pytest.mark.parametrize(('arch', 'window'), CASES)
def test_transformers_and_mmpretrain(peer_files, arch, window):
    library, root = peer_files
    folder = root / f'{arch}-{window}'
    # A model folder of transformers, whose config.json has the window.
    file = folder if library == 'transformers' else folder / 'checkpoint.pth'
    norm_cfg = dict(type='LN') if library == 'mmpretrain' else None
    expected = torch.load(folder / 'features.pth')
    check_loads_and_agrees(library, arch, window, file, expected, norm_cfg)


def assert_there_and_back(file, layout, lossless=True):
    """Round trips from their layout and from ours are exact."""
    found = find_backbone(unwrap(read_checkpoint_file(file), str(file)), str(file))
    assert found.layout.name == layout
    report = LoadReport(str(file), layout, found.prefix)
    ours = convert_state(found, 'native', report)
    native = find_backbone(ours, 'ours', layout='native')
    theirs = convert_state(native, layout, LoadReport('ours', 'native', ''))
    left_out = {key for keys in report.dropped.values() for key in keys}
    assert set(theirs) == set(found.state) - left_out
    for key, value in theirs.items():
        if lossless or not key.endswith('qkv.bias'):
            assert torch.equal(value, found.state[key]), key
    again = convert_state(
        find_backbone(theirs, 'theirs', layout=layout), 'native', LoadReport('theirs', layout, '')
    )
    assert set(again) == set(ours)
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    return theirs


def test_timm_there_and_back(tmp_path):
    model = give_weights(timm_model('tiny', 8))
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    theirs = assert_there_and_back(tmp_path / 'model.pth', 'timm')
    lacking = timm_model('tiny', 8).load_state_dict(theirs, strict=False)
    assert lacking.unexpected_keys == []
    assert {key.split('.')[0] for key in lacking.missing_keys} == {'norm', 'head'}


def test_torchvision_there_and_back(tmp_path):
    model = give_weights(torchvision_model('tiny', 8))
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    theirs = assert_there_and_back(tmp_path / 'model.pth', 'torchvision', lossless=False)
    # Only the key bias is lost, which torchvision stores and sets to zero in every forward pass.
    checked = 0
    for key, value in model.state_dict().items():
        if key.endswith('qkv.bias'):
            q, k, v = value.chunk(3)
            assert torch.equal(theirs[key], torch.cat((q, torch.zeros_like(k), v)))
            checked += 1
    assert checked == 12
    again = torchvision_model('tiny', 8)
    lacking = again.load_state_dict(theirs, strict=False)
    assert lacking.unexpected_keys == []
    assert not [
        key for key in lacking.missing_keys if key.startswith('features') and 'relative' not in key
    ]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = torchvision_features(model, image)
        for mine, peer in zip(torchvision_features(again.eval(), image), expected):
            assert torch.equal(mine, peer)


def test_transformers_and_mmpretrain_there_and_back(peer_files):
    library, root = peer_files
    folder = root / 'tiny-8'
    if library == 'transformers':
        assert_there_and_back(folder / 'model.safetensors', 'hf')
    else:
        assert_there_and_back(folder / 'checkpoint.pth', 'mmpretrain')


@pytest.mark.parametrize('to', ['official', 'timm', 'hf', 'torchvision', 'mmpretrain', 'native'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_converted_file_gives_the_features_of_its_source(to, suffix, tmp_path, nano):
    source, target = tmp_path / 'ours.pth', tmp_path / f'converted{suffix}'
    backbone = give_weights(nano(norm_cfg=None))
    torch.save(backbone.state_dict(), source)
    convert_checkpoint(source, target, to)
    again = nano(norm_cfg=None, pretrained_window_sizes=4).eval()
    report = load_pretrained(again, target)
    assert report.layout == to
    image = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        for mine, theirs in zip(again(image), backbone(image)):
            assert torch.equal(mine, theirs)
