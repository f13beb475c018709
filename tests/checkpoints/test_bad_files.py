"""Test the error messages for invalid files."""

import json
import struct
import tarfile
import zipfile

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint
from safetensors.torch import save_file
from torch import nn

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import (
    CheckpointError,
    UntrustedCheckpointError,
    guard_mmengine,
    load_pretrained,
    read_checkpoint_file,
)


@pytest.fixture
def good(nano, tmp_path):
    torch.save({'state_dict': nano().state_dict()}, tmp_path / 'good.pth')
    return tmp_path / 'good.pth'


def fails(backbone, file, message):
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(backbone, file)
    assert str(file) in str(caught.value)
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    return str(caught.value)


@pytest.mark.parametrize('keep', [0.3, 0.9, 0.999])
def test_truncated(keep, good, nano):
    content = good.read_bytes()
    good.write_bytes(content[: int(keep * len(content))])
    message = fails(
        nano(), good, 'is cut off after .* bytes: remove it, and copy or download it again'
    )
    assert '\n' not in message


@pytest.mark.parametrize('keep', [0.3, 0.9])
def test_truncated_in_the_old_format(keep, nano, tmp_path):
    file = tmp_path / 'old.pth'
    torch.save(nano().state_dict(), file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    assert '\n' not in fails(nano(), file, 'damaged|more than weights')


@pytest.mark.parametrize('keep', [0.3, 0.9])
def test_truncated_safetensors(keep, nano, tmp_path):
    file = tmp_path / 'file.safetensors'
    save_file(nano().state_dict(), file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    assert '\n' not in fails(nano(), file, 'damaged')


def test_empty_file(nano, tmp_path):
    (tmp_path / 'empty.pth').touch()
    fails(nano(), tmp_path / 'empty.pth', 'is empty')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('these are my weights\n', r"b'these are my wei'\) is damaged or not a checkpoint"),
        ('<!DOCTYPE html><html>Not Found</html>', 'is a web page'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'git lfs pull'),
        ('{"state_dict": 1}', 'damaged or not a checkpoint'),
        ('gewöhnlicher Text', 'damaged or not a checkpoint'),
        (
            'x' * 31 + 'ö' * 40,
            'damaged or not a checkpoint',
        ),  # letters across the boundaries of the quoted bytes
        ('x' * 30 + 'ö' * 40, 'damaged or not a checkpoint'),
    ],
)
@pytest.mark.parametrize('name', ['text.pth', 'text.pt'])
def test_text(text, message, name, nano, tmp_path):
    (tmp_path / name).write_text(text, encoding='utf-8')
    said = fails(nano(), tmp_path / name, message)
    assert '\n' not in said and 'weights_only' not in said


@pytest.mark.parametrize('content', [{}, {'state_dict': {}}, {'epoch': 3, 'meta': {}}])
def test_no_weights(content, nano, tmp_path):
    torch.save(content, tmp_path / 'file.pth')
    assert '\n' not in fails(nano(), tmp_path / 'file.pth', 'holds no weights; its keys are')


def test_no_dict(nano, tmp_path):
    torch.save([torch.ones(2)], tmp_path / 'file.pth')
    fails(nano(), tmp_path / 'file.pth', 'holds a list, not a dict of weights')


def test_classifier_only(nano, tmp_path):
    torch.save(
        {'head.weight': torch.ones(10, 32), 'head.bias': torch.ones(10)}, tmp_path / 'head.pth'
    )
    message = fails(nano(), tmp_path / 'head.pth', 'no SwinV2 backbone in a known layout')
    assert 'head.weight' in message and '\n' not in message


@pytest.mark.parametrize(
    ('key', 'model'),
    [
        ('layers.0.blocks.0.attn.relative_position_bias_table', 'a Swin V1'),
        ('stages.0.blocks.0.attn.w_msa.relative_position_bias_table', 'a Swin V1'),
        ('stages.0.blocks.0.attn.tau', 'a SwinV2-CR'),
        ('backbone.layer4.0.conv1.weight', 'a ResNet'),
    ],
)
def test_another_model(key, model, nano, tmp_path):
    torch.save(
        {'patch_embed.proj.weight': torch.ones(2), key: torch.ones(2)}, tmp_path / 'file.pth'
    )
    fails(nano(), tmp_path / 'file.pth', f'holds {model}, not a SwinV2')


def test_small_into_tiny_and_back(tmp_path):
    """The file of a small model contains all weights of a tiny one; only unexpected keys show the mismatch."""
    small = SwinTransformerV2('small', norm_cfg=None)
    tiny = SwinTransformerV2('tiny', norm_cfg=None)
    torch.save(small.state_dict(), tmp_path / 'small.pth')
    torch.save(tiny.state_dict(), tmp_path / 'tiny.pth')
    with pytest.raises(CheckpointError, match='unexpected') as caught:
        load_pretrained(tiny, tmp_path / 'small.pth')
    assert 'depths [2, 2, 18, 2]; the model has depths [2, 2, 6, 2]' in str(caught.value)
    with pytest.raises(CheckpointError, match='missing'):
        load_pretrained(small, tmp_path / 'tiny.pth')


def test_other_widths_and_heads(nano, tmp_path):
    wide = SwinTransformerV2(
        dict(embed_dims=16, depths=[2, 1, 3], num_heads=[1, 2, 4]), out_indices=(0, 1, 2)
    )
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    fails(
        nano(),
        tmp_path / 'wide.pth',
        r'shape mismatch: .*\(16, 3, 4, 4\) instead of \(8, 3, 4, 4\)',
    )
    heads = SwinTransformerV2(
        dict(embed_dims=8, depths=[2, 1, 3], num_heads=[2, 4, 8]), out_indices=(0, 1, 2)
    )
    torch.save(heads.state_dict(), tmp_path / 'heads.pth')
    fails(nano(), tmp_path / 'heads.pth', r'logit_scale \(\(2, 1, 1\) instead of \(1, 1, 1\)')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite(value, nano, tmp_path):
    state = nano().state_dict()
    state['layers.1.blocks.0.mlp.fc2.weight'][3, 5] = value
    torch.save(state, tmp_path / 'file.pth')
    fails(nano(), tmp_path / 'file.pth', r'NaN or infinite: 1 \(layers.1.blocks.0.mlp.fc2.weight')


def test_half_of_what_belongs_together(nano, tmp_path):
    """A query without its key, in a layout that stores them separately."""
    from swinv2_mm.checkpoints.convert import convert_checkpoint

    torch.save(nano(norm_cfg=None).state_dict(), tmp_path / 'ours.pth')
    convert_checkpoint(tmp_path / 'ours.pth', tmp_path / 'hf.pth', 'hf')
    state = torch.load(tmp_path / 'hf.pth')
    del state['encoder.layers.0.blocks.1.attention.self.key.weight']
    torch.save(state, tmp_path / 'hf.pth')
    fails(
        nano(norm_cfg=None, pretrained_window_sizes=4),
        tmp_path / 'hf.pth',
        'layers.0.blocks.1.attn.qkv.weight',
    )


def test_no_such_file(nano, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth does not exist'):
        load_pretrained(nano(), tmp_path / 'nowhere.pth')
    with pytest.raises(
        FileNotFoundError, match=r'model\.safetensors or .*pytorch_model\.bin does not exist'
    ):
        load_pretrained(nano(), tmp_path)


def test_a_device_that_is_not_there(good):
    with pytest.raises(CheckpointError, match=r'good\.pth'):
        read_checkpoint_file(good, map_location='no_such_device')


def rewrite(source, target, change=lambda raw: raw, compression=zipfile.ZIP_STORED):
    """Write a checkpoint again, with another pickle or compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', compression) as new:
        for name in old.namelist():
            raw = old.read(name)
            new.writestr(name, change(raw) if name.endswith('/data.pkl') else raw)


def claim(kind, folder):
    """Write a small file with a tensor that claims 2^40 elements; return the file."""
    file, huge = folder / 'huge.pth', b'\x8a\x06' + (2**40).to_bytes(6, 'little')
    if kind == 'safetensors':
        entry = {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}
        header = json.dumps({'patch_embed.proj.weight': entry}).encode()
        file = file.with_suffix('.safetensors')
        file.write_bytes(struct.pack('<Q', len(header)) + header)
        return file
    weights = {
        'repeated': lambda: torch.ones(1).expand(2**40),
        'meta': lambda: torch.empty(2**40, device='meta'),
        'sparse': lambda: torch.sparse_coo_tensor([[0]], [1.0], (2**40,)),
    }.get(kind, lambda: torch.ones(8, 3, 4, 4))()
    torch.save({'patch_embed.proj.weight': weights}, folder / 'small.pth')

    def change(raw):
        if 'shape' in kind:
            raw = raw.replace(b'K\x08K\x03K\x04K\x04t', huge + b'K\x01K\x01K\x01t')
        return raw.replace(b'M\x80\x01', huge) if 'storage' in kind else raw

    rewrite(folder / 'small.pth', file, change)
    return file


@pytest.mark.parametrize(
    'kind', ['repeated', 'meta', 'sparse', 'shape', 'shape and storage', 'safetensors']
)
def test_a_tensor_that_claims_more_than_is_stored(kind, nano, tmp_path, run_tool):
    file = claim(kind, tmp_path)
    assert '\n' not in fails(nano(), file, r'claims|damaged|no SwinV2')
    with guard_mmengine(), pytest.raises(CheckpointError, match=r'claims|damaged'):
        load_checkpoint(nn.Linear(2, 2), str(file))
    for tool in ('convert_checkpoint.py', 'publish_model.py'):
        done = run_tool(tool, file, tmp_path / 'out.pth')
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'out.pth').exists()


def test_a_compressed_file_loads(good, nano, tmp_path):
    rewrite(good, tmp_path / 'small.pth', compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / 'small.pth').stat().st_size < good.stat().st_size
    backbone, other = nano(), nano()
    load_pretrained(backbone, good)
    load_pretrained(other, tmp_path / 'small.pth')
    assert torch.equal(backbone.patch_embed.proj.weight, other.patch_embed.proj.weight)


def test_programs_of_torch_are_refused_by_name(nano, tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / 'script.pth')
    fails(nano(), tmp_path / 'script.pth', 'is a TorchScript program')
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    with pytest.raises(UntrustedCheckpointError, match='a tar file of torch before'):
        read_checkpoint_file(tmp_path / 'old.pth')


def test_versions_of_torch_with_known_holes_are_named_once(good, monkeypatch, caplog):
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handlers', [caplog.handler])
    for version, known in (('2.5.1+cpu', 'CVE-2025-32434, CVE-2026-24747'), ('2.9.1', 'CVE-2026')):
        monkeypatch.setattr(torch, '__version__', version)
        for _ in range(2):
            read_checkpoint_file(good)
        assert f'torch {version} can run code from a .pth file' in caplog.text
        assert known in caplog.text and caplog.text.count('can run code') == 1
        caplog.clear()
    monkeypatch.setattr(torch, '__version__', '2.10.0')
    read_checkpoint_file(good)
    assert not caplog.text


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_not_converted(value, nano, tmp_path, run_tool):
    state = nano().state_dict()
    state['layers.1.blocks.0.mlp.fc2.weight'][3, 5] = value
    torch.save(state, tmp_path / 'file.pth')
    for tool in ('convert_checkpoint.py', 'publish_model.py'):
        done = run_tool(tool, tmp_path / 'file.pth', tmp_path / 'out.pth')
        assert done.returncode == 2 and 'layers.1.blocks.0.mlp.fc2.weight' in done.stderr
        assert not list(tmp_path.glob('out*'))
