"""Test pre-trained weights and windows in the training and testing tools."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.sources import cached_file
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.launch import evaluate, train

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a small segmenter at window 6 that starts from weights trained at window 8."""
    root = tmp_path / 'shapes'
    generate_shapes(root, num_train=4, num_val=2, image_size=(64, 64))
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root))
    cfg = Config.fromfile(next(CONFIGS.glob('quickstart/*upernet*.py')))
    cfg.model.backbone.arch.depths = (1, 1, 1, 1)
    backbone = dict(cfg.model.backbone, window_size=8, pretrained_window_sizes=8)
    backbone.pop('type')
    torch.save(SwinTransformerV2(**backbone).state_dict(), tmp_path / 'w8.pth')
    cfg.model.backbone.window_size = 6
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'w8.pth'))
    cfg.train_dataloader.batch_size = 2
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.dump(str(tmp_path / 'config.py'))
    return str(tmp_path / 'config.py')


def test_the_window_of_pretrained_weights_goes_through_training_to_testing(config, tmp_path):
    work_dir = str(tmp_path / 'work')
    assert train(config, work_dir=work_dir, device='cpu', max_iters=1) == 0
    log = next(Path(work_dir).rglob('*.log')).read_text()
    assert 'trained at window' in log and 'w8.pth' in log
    saved = torch.load(Path(work_dir) / 'iter_1.pth', weights_only=False)['state_dict']
    assert saved['backbone.pretrained_window_sizes'].tolist() == [[8, 8]] * 4

    (tmp_path / 'w8.pth').unlink()  # testing and resuming do not load it again
    assert evaluate(config, work_dir, work_dir=work_dir, device='cpu') == 0
    assert train(config, resume='auto', work_dir=work_dir, device='cpu', max_iters=2) == 0
    wrong = ['model.backbone.pretrained_window_sizes=6']
    assert evaluate(config, work_dir, work_dir=work_dir, device='cpu', cfg_options=wrong) == 2


def test_no_pretrained_starts_from_scratch(config, tmp_path):
    (tmp_path / 'w8.pth').unlink()
    work_dir = str(tmp_path / 'work')
    assert train(config, work_dir=work_dir, device='cpu', max_iters=1) == 2
    done = train(config, work_dir=work_dir, device='cpu', max_iters=1, no_pretrained=True)
    assert done == 0
    saved = torch.load(Path(work_dir) / 'iter_1.pth', weights_only=False)['state_dict']
    assert saved['backbone.pretrained_window_sizes'].tolist() == [[6, 6]] * 4


def test_the_backbone_builds_under_its_plain_name_with_the_new_default():
    backbone = MODELS.build(dict(type='SwinTransformerV2', arch='tiny', out_indices=(0,)))
    assert backbone.pretrained_window_sizes == 'auto'


def test_without_network_one_sentence_says_what_to_put_where(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    address = 'http://127.0.0.1:9/swinv2_nano_patch4_window8_64.pth'
    options = [f'model.backbone.init_cfg.checkpoint={address}']
    run = dict(work_dir=str(tmp_path / 'work'), device='cpu', max_iters=1, cfg_options=options)
    assert train(config, **run) == 2
    err = capsys.readouterr().err.strip()
    place = cached_file(address)
    for part in (address, str(place), '--no-pretrained', 'name your copy'):
        assert part in err
    assert len(err.splitlines()) == 1
    assert train(config, no_pretrained=True, **run) == 0

    # --no-pretrained is only suggested where it helps.
    run['cfg_options'] = [f'load_from={address}']
    assert train(config, no_pretrained=True, **run) == 2
    assert '--no-pretrained' not in capsys.readouterr().err
