"""Test the two converters as programs."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint, load_checkpoint
from torch import nn

from swinv2_mm.checkpoints import (
    CheckpointError,
    guard_mmengine,
    load_pretrained,
    read_checkpoint_file,
)
from swinv2_mm.checkpoints.convert import WRITABLE, convert_checkpoint, publish_checkpoint
from swinv2_mm.checkpoints.layouts import layout_by_name


@pytest.fixture
def detector(nano, tmp_path):
    """Return a training checkpoint of a complete detector."""
    backbone = nano(window_size=5)
    head = {'rpn_head.weight': torch.ones(3), 'roi_head.weight': torch.ones(4)}
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    content = {
        'state_dict': {**state, **head},
        'optimizer': {'state': {0: torch.ones(1000)}},
        'meta': {
            'epoch': 12,
            'dataset_meta': {'classes': ('disc', 'square'), 'palette': [(1, 2, 3)]},
        },
    }
    torch.save(content, tmp_path / 'detector.pth')
    return backbone, tmp_path / 'detector.pth'


def test_convert_reports_and_writes(detector, nano, tmp_path, run_tool):
    backbone, source = detector
    target = tmp_path / 'timm.safetensors'
    dry = run_tool('convert_checkpoint.py', source, target, '--to', 'timm', '--dry-run')
    assert dry.returncode == 0, dry.stderr
    assert 'nothing written' in dry.stdout and not target.exists()
    done = run_tool('convert_checkpoint.py', source, target, '--to', 'timm')
    assert done.returncode == 0, done.stderr
    for part in ('native', "'backbone.'", 'rpn_head.weight', '[5, 5, 5]', 'norm0.weight'):
        assert part in done.stdout
    again = nano(window_size=9)
    report = load_pretrained(again, target)
    assert report.layout == 'timm'
    assert (
        report.windows.windows == ((5, 5),) * 3
    )  # in the metadata, since timm's layout does not have it
    assert torch.equal(
        again.layers[1].downsample.reduction.weight, backbone.layers[1].downsample.reduction.weight
    )


@pytest.mark.parametrize('to', [to for to in WRITABLE if layout_by_name(to).family == 'v2'])
def test_windows_survive_where_the_file_has_a_place_for_them(to, detector, nano, tmp_path):
    _, source = detector
    for suffix in ('.safetensors', '.pth'):
        convert_checkpoint(source, tmp_path / f'out{suffix}', to)
        if suffix == '.pth' and to in ('timm', 'timm-features', 'hf', 'torchvision'):
            # A bare state dict.
            assert load_pretrained(nano(), tmp_path / f'out{suffix}').windows is None
        else:
            report = load_pretrained(nano(), tmp_path / f'out{suffix}')
            assert report.windows.windows == ((5, 5),) * 3


def test_convert_errors_are_one_sentence(detector, tmp_path, run_tool):
    _, source = detector
    for arguments, message in (
        ((tmp_path / 'missing.pth', tmp_path / 'out.pth'), 'does not exist'),
        ((source, tmp_path / 'nowhere' / 'out.pth'), 'does not exist'),
        ((source, source), 'is the source itself'),
        ((source, tmp_path / 'out.onnx'), 'expected a name that ends in'),
    ):
        done = run_tool('convert_checkpoint.py', *arguments)
        assert done.returncode == 2
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_layout_without_a_place_for_a_weight_is_an_error(tmp_path):
    from swinv2_mm import SwinTransformerV2

    arch = dict(embed_dims=8, depths=[2], num_heads=[1], extra_norm_every_n_blocks=2)
    torch.save(SwinTransformerV2(arch, out_indices=(0,)).state_dict(), tmp_path / 'huge.pth')
    convert_checkpoint(tmp_path / 'huge.pth', tmp_path / 'out.pth', 'mmpretrain')
    with pytest.raises(CheckpointError, match=r'norm3\.weight'):
        convert_checkpoint(tmp_path / 'huge.pth', tmp_path / 'out.pth', 'torchvision')
    with pytest.raises(CheckpointError, match='cannot write the layout simmim'):
        convert_checkpoint(tmp_path / 'huge.pth', tmp_path / 'out.pth', 'simmim')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_publish_keeps_the_weights_and_the_classes(suffix, detector, tmp_path, run_tool):
    backbone, source = detector
    done = run_tool('publish_model.py', source, tmp_path / f'model{suffix}')
    assert done.returncode == 0, done.stderr
    published = Path(done.stdout.strip())
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.name == f'model-{digest[:8]}{suffix}'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['detector.pth', published.name]
    assert published.stat().st_size < source.stat().st_size
    with guard_mmengine():
        content = _load_checkpoint(str(published))
    assert set(content) == {'state_dict', 'meta'}
    assert list(content['meta']['dataset_meta']['classes']) == ['disc', 'square']
    model = nn.Module()
    model.backbone = type(backbone)(
        dict(embed_dims=8, depths=[2, 1, 3], num_heads=[1, 2, 4]),
        window_size=7,
        out_indices=(0, 1, 2),
    )
    load_checkpoint(model, str(published), map_location='cpu')
    for key, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value)


def test_publishing_twice_gives_the_same_name(detector, tmp_path):
    _, source = detector
    first = publish_checkpoint(source, tmp_path / 'model.safetensors')
    assert publish_checkpoint(source, tmp_path / 'model.safetensors') == first


def test_publish_takes_whatever_stands_beside_the_weights(detector, tmp_path):
    _, source = detector
    content = torch.load(source)
    content['meta']['dataset_meta']['palette'] = np.array([[1, 2, 3]])
    torch.save(content, source)
    published = publish_checkpoint(source, tmp_path / 'palette.safetensors')
    assert read_checkpoint_file(published)['meta']['dataset_meta']['palette'] == [[1, 2, 3]]
    for meta in ('a text', [1], None):
        torch.save({**content, 'meta': meta}, source)
        published = publish_checkpoint(source, tmp_path / 'none.safetensors')
        assert 'dataset_meta' not in read_checkpoint_file(published)['meta']
    torch.save({**content, 'meta': {'dataset_meta': {'classes': b'disc'}}}, source)
    with pytest.raises(CheckpointError, match=r'dataset_meta cannot be kept: .*bytes'):
        publish_checkpoint(source, tmp_path / 'bytes.safetensors')
