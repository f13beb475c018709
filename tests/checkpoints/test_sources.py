"""Test addresses and their error messages."""

import functools
import json
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from hostile import write_hostile
from mmengine.fileio.backends import BaseStorageBackend, backends
from mmengine.runner.checkpoint import _load_checkpoint
from safetensors.torch import save_file

from swinv2_mm.checkpoints import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
    guard_mmengine,
    load_pretrained,
)
from swinv2_mm.checkpoints.sources import fetch_checkpoint


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Use an empty cache of the Hugging Face hub, without network."""
    cache = tmp_path / 'hub'
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)

    def put(repo, files):
        folder = cache / f'models--{repo.replace("/", "--")}'
        commit = '0123456789abcdef0123456789abcdef01234567'
        (folder / 'refs').mkdir(parents=True)
        (folder / 'refs' / 'main').write_text(commit)
        snapshot = folder / 'snapshots' / commit
        snapshot.mkdir(parents=True)
        for name, write in files.items():
            write(snapshot / name)
        return snapshot

    return put


def silent(backbone):
    """Return a state dict without information about its window."""
    state = backbone.state_dict()
    del state['pretrained_window_sizes']
    return state


def test_hub_with_safetensors_and_config(hub, nano):
    backbone = nano(norm_cfg=None)
    config = dict(image_size=192, patch_size=4, window_size=12)
    hub(
        'org/model',
        {
            'model.safetensors': lambda path: save_file(silent(backbone), path),
            'config.json': lambda path: path.write_text(json.dumps(config)),
        },
    )
    other = nano(norm_cfg=None)
    report = load_pretrained(other, 'hf://org/model')
    assert report.windows.windows[:3] == ((12, 12),) * 3
    assert torch.equal(other.patch_embed.proj.weight, backbone.patch_embed.proj.weight)


def test_hub_with_another_file_and_a_window_in_the_name(hub, nano):
    backbone = nano(norm_cfg=None)
    hub(
        'org/swinv2-nano-window6-64',
        {'weights.bin': lambda path: torch.save(silent(backbone), path)},
    )
    report = load_pretrained(nano(norm_cfg=None), 'hf://org/swinv2-nano-window6-64/weights.bin')
    assert report.windows.windows[0] == (6, 6)


def test_timm_names(hub, tmp_path):
    snapshot = hub(
        'timm/swinv2_tiny_window8_256.ms_in1k',
        {'model.safetensors': lambda path: save_file({'x': torch.ones(1)}, path)},
    )
    found = fetch_checkpoint('timm://swinv2_tiny_window8_256.ms_in1k')
    assert found.path == snapshot / 'model.safetensors'
    assert found.name == 'swinv2_tiny_window8_256.ms_in1k'


@pytest.mark.parametrize(
    ('address', 'repo'),
    [
        ('timm://swinv2_small_window16_256.ms_in1k', 'timm/swinv2_small_window16_256.ms_in1k'),
        (
            'hf://microsoft/swinv2-tiny-patch4-window8-256',
            'microsoft/swinv2-tiny-patch4-window8-256',
        ),
    ],
)
def test_offline_the_hub_says_what_to_put_where(address, repo, hub, tmp_path, nano):
    with pytest.raises(CheckpointUnavailableError) as caught:
        load_pretrained(nano(), address)
    message = str(caught.value)
    assert f'https://huggingface.co/{repo}/resolve/main/model.safetensors' in message
    assert str(tmp_path / 'hub') in message and address in message
    assert '\n' not in message


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        (
            'timm://swinv2_tiny_window9_256',
            "timm knows no weights called 'swinv2_tiny_window9_256'; similar",
        ),
        ('hf://model', 'expected hf://OWNER/NAME'),
        ('ftp://host/file.pth', 'unknown kind of address'),
        ('torchvision://swin_v9', "knows no 'swin_v9'"),
    ],
)
def test_malformed_addresses(address, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        fetch_checkpoint(address)


def test_an_address_of_the_hub_is_no_address_of_just_any_model(hub, torch_home, nano):
    """Two models of the hub have files of the same name."""
    file = 'model/resolve/main/model.safetensors?download=true'
    states = {'one': nano().state_dict(), 'two': nano().state_dict()}
    assert not torch.equal(*(state['patch_embed.proj.weight'] for state in states.values()))
    for owner, state in states.items():
        hub(f'{owner}/model', {'model.safetensors': functools.partial(save_file, state)})
    for owner, state in states.items():
        backbone = nano()
        load_pretrained(backbone, f'https://huggingface.co/{owner}/{file}')
        assert torch.equal(backbone.patch_embed.proj.weight, state['patch_embed.proj.weight'])


def test_offline_the_hub_names_the_revision_that_was_asked_for(hub, nano):
    with pytest.raises(CheckpointUnavailableError) as caught:
        load_pretrained(nano(), 'hf://org/model@v2')
    for part in ('/resolve/v2/model.safetensors', 'hf download org/model --revision v2'):
        assert part in str(caught.value)


def test_file_addresses(tmp_path):
    (tmp_path / 'a b.pth').touch()
    assert fetch_checkpoint(f'file://{tmp_path}/a%20b.pth').path == tmp_path / 'a b.pth'
    with pytest.raises(CheckpointUnavailableError, match=r'nowhere\.pth does not exist'):
        fetch_checkpoint(f'file://{tmp_path}/nowhere.pth')


class FolderStore(BaseStorageBackend):
    """An object store whose buckets are in the folder `root`."""

    root = Path()

    def get(self, filepath):
        return (self.root / filepath.partition('://')[2]).read_bytes()

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)


@pytest.mark.parametrize('address', ['s3://bucket/file.pth', 'cluster:petrel://bucket/file.pth'])
def test_object_stores(address, tmp_path, monkeypatch, nano):
    """Install the client as the separate package that mmengine imports."""
    (tmp_path / 'bucket').mkdir()
    monkeypatch.setattr(FolderStore, 'root', tmp_path)
    monkeypatch.setitem(backends, 'petrel', FolderStore)
    backbone = nano()
    torch.save(backbone.state_dict(), tmp_path / 'bucket/file.pth')
    weight = backbone.patch_embed.proj.weight
    assert torch.equal(_load_checkpoint(address)['patch_embed.proj.weight'], weight)
    with guard_mmengine():
        assert torch.equal(_load_checkpoint(address)['patch_embed.proj.weight'], weight)
    other = nano(init_cfg=dict(type='Pretrained', checkpoint=address))
    other.init_weights()
    assert torch.equal(other.patch_embed.proj.weight, weight)

    marker = tmp_path / 'marker'
    (tmp_path / 'bucket/file.pth').write_bytes(write_hostile(tmp_path, marker)['zip'].read_bytes())
    with guard_mmengine(), pytest.raises(UntrustedCheckpointError):
        _load_checkpoint(address)
    assert not marker.exists()
    (tmp_path / 'bucket/file.pth').unlink()
    with pytest.raises(CheckpointUnavailableError, match=f'cannot read {re.escape(address)}'):
        load_pretrained(nano(), address)


def test_models_of_openmmlab_in_the_folder_of_mmengine(tmp_path, monkeypatch, nano):
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text('{"mine": "mine.pth"}')
    torch.save(nano().state_dict(), tmp_path / 'mine.pth')
    assert fetch_checkpoint('open-mmlab://mine').path == tmp_path / 'mine.pth'
