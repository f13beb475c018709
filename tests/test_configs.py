"""Build every config with the registries, and run a training and a prediction step."""

import copy
import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from timm.models.swin_transformer_v2 import default_cfgs
from torch import nn

import swinv2_mm
from swinv2_mm.checkpoints.sources import cached_file
from swinv2_mm.checkpoints.windows import windows_of_name
from swinv2_mm.engine.config import drop_pretrained
from swinv2_mm.engine.optimizer import NO_DECAY
from swinv2_mm.models.backbones.arch import ARCHS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL_LEAVES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('[!_]*/**/*.py'))
# Classification configs, which need mmpretrain, are tested in test_classification_configs.py.
LEAVES = [leaf for leaf in ALL_LEAVES if not leaf.startswith(('classification/', 'comparison/'))]
PUBLISHED = [leaf for leaf in LEAVES if re.search(r'swinv2-[tsbl]-', leaf)]
SMALL = [leaf for leaf in LEAVES if 'swinv2-nano' in leaf]
REAL_DATA = os.environ.get('SWINV2_MM_DATA')
VARIANT = re.compile('-[sblg]-p4|-w(16|20|32|40)-|-w(16|32)_|lsj-100e|mask_rcnn/.*ms-crop')
"""Configs that differ from others in size, window or schedule alone."""


def marking_variants(leaves: list[str], mark: Any) -> list[Any]:
    return [pytest.param(leaf, marks=mark) if VARIANT.search(leaf) else leaf for leaf in leaves]


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@functools.cache
def _parsed(leaf: str) -> Config:
    return Config.fromfile(CONFIGS / leaf)


def read(leaf: str) -> Config:
    return copy.deepcopy(_parsed(leaf))


def scope_of(cfg: Config):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


@functools.cache
def build_on_meta(leaf: str) -> nn.Module:
    """Build the real modules at full size without allocating weights."""
    cfg = read(leaf)
    with scope_of(cfg), torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_config_of_the_project_is_found():
    assert len(LEAVES) >= 65
    assert len(PUBLISHED) >= 60
    assert len(SMALL) >= 4
    found = {leaf.split('/')[0] for leaf in LEAVES}
    assert found >= {'mask_rcnn', 'upernet', 'fpn', 'quickstart'}


def test_every_base_file_is_used_by_a_config():
    """A base that no config uses would not be tested."""

    def bases_of(path: Path) -> set[Path]:
        bases = Config._get_base_files(str(path)) or []
        direct = {(path.parent / base).resolve() for base in bases if '::' not in base}
        return direct.union(*(bases_of(base) for base in direct))

    used = set().union(*(bases_of(CONFIGS / leaf) for leaf in ALL_LEAVES))
    assert set((CONFIGS / '_base_').rglob('*.py')) <= used


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_builds_the_model_that_its_name_says(leaf):
    cfg = read(leaf)
    assert cfg.custom_imports.imports[0] == 'swinv2_mm'
    assert 'ResNet' not in str(cfg.to_dict())
    model = build_on_meta(leaf)
    backbone = model.backbone
    assert isinstance(backbone, swinv2_mm.SwinTransformerV2)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())  # `sync_bn` converts
    assert cfg.sync_bn == 'torch'
    if cfg.model.get('neck'):
        assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
    window = re.search(r'-w(\d+)', leaf)
    if window:
        assert cfg.model.backbone.window_size == int(window[1])
    depths = tuple(len(stage.blocks) for stage in backbone.layers)
    size = re.search(r'swinv2-(\w+?)[-_]', leaf)[1]
    if size == 'nano':
        assert backbone.out_channels[0] < ARCHS['tiny'].embed_dims
    else:
        (arch,) = (arch for name, arch in ARCHS.items() if name[0] == size)
        assert (backbone.arch.dims, depths) == (arch.dims, arch.depths)
    crop = re.search(r'-(\d+)x(\d+)\.py', leaf)
    if crop:
        assert cfg.model.data_preprocessor.size == (int(crop[1]), int(crop[2]))


STOCK = [leaf for leaf in PUBLISHED if 'pennfudan' not in leaf and 'camvid' not in leaf]


@pytest.mark.parametrize('leaf', marking_variants(LEAVES, pytest.mark.long))
def test_configs_of_large_data_sets_start_from_weights_of_their_size(leaf):
    cfg = read(leaf)
    if leaf not in STOCK:
        assert 'Pretrained' not in str(cfg.to_dict())
        return
    backbone = cfg.model.backbone
    assert backbone.init_cfg.keys() == {'type', 'checkpoint'}
    assert backbone.init_cfg.type == 'Pretrained'
    address = backbone.init_cfg.checkpoint
    # timm has its own list of the official files.
    official = {entry.url for cfgs in default_cfgs.values() for entry in cfgs.cfgs.values()}
    assert address in official
    name = address.rsplit('/')[-1]
    assert name.startswith(f'swinv2_{backbone.arch}_patch4_window')
    if re.search('-[tsb]-p4-w(8|16)-|-l-p4-w12-', leaf):  # there are weights of this window
        assert name.startswith(f'swinv2_{backbone.arch}_patch4_window{backbone.window_size}_')
    trained = [pair[0] for pair in windows_of_name(name).windows]
    expected = {12: [12, 12, 12, 6], 16: [16, 16, 16, 8]}  # images had 192 or 256 pixels
    assert trained == expected.get(trained[0], [8, 8, 8, 8])
    assert ('22k' in name) == (backbone.arch == 'large')
    if 'ade20k' in leaf:
        assert ('-in22k-pre_' if '22k' in name else '-in1k-pre_') in leaf
    assert drop_pretrained(cfg.model) == 1  # as --no-pretrained
    assert backbone.init_cfg is None


@pytest.mark.parametrize('leaf', marking_variants(LEAVES, pytest.mark.long))
def test_the_readme_of_a_method_has_the_number_of_parameters(leaf):
    path = CONFIGS / leaf
    (row,) = re.findall(rf'\]\({path.name}\)(.*)', path.with_name('README.md').read_text())
    count = sum(p.numel() for p in build_on_meta(leaf).parameters())
    assert f'| {count / 1e6:.1f} |' in row


@pytest.mark.parametrize(
    'leaf', [leaf for leaf in STOCK if re.search('-t-p4-w8.*(1x|12e)_coco', leaf)]
)
def test_building_a_stock_config_asks_for_no_file(leaf, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert build_on_meta.__wrapped__(leaf).backbone.init_cfg is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'leaf', [leaf for leaf in STOCK if re.search('mask_rcnn.*1x_coco|upernet.*-(t|l)-p4', leaf)]
)
def test_the_weights_come_from_a_file_that_was_put_in_its_place(leaf, tmp_path, monkeypatch):
    """Write a small classifier file in the official layout, trained at the window in its name."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cfg = read(leaf)
    arch = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2))
    options = dict(cfg.model.backbone, arch=arch, norm_cfg=None, init_cfg=None)
    del options['type']
    source = swinv2_mm.SwinTransformerV2(**options)
    state = source.state_dict()
    del state['pretrained_window_sizes']
    state |= {'norm.weight': torch.ones(64), 'head.weight': torch.ones(3, 64)}
    file = cached_file(cfg.model.backbone.init_cfg.checkpoint)
    file.parent.mkdir(parents=True)
    torch.save({'model': state}, file)

    options.update(init_cfg=cfg.model.backbone.init_cfg, norm_cfg=dict(type='LN'))
    backbone = swinv2_mm.SwinTransformerV2(**options)
    backbone.init_weights()
    for name, parameter in source.named_parameters():
        assert torch.equal(backbone.get_parameter(name), parameter), name
    windows = windows_of_name(file.name).windows
    stored = backbone.state_dict()['pretrained_window_sizes'].tolist()
    assert stored == [list(window) for window in windows]


@pytest.mark.parametrize('leaf', marking_variants(PUBLISHED, pytest.mark.long))
def test_the_drop_path_rate_belongs_to_the_size(leaf):
    cfg, size = read(leaf), re.search(r'swinv2-(\w)-', leaf)[1]
    rate = 0.2 if size == 't' else 0.3
    if leaf.startswith('mask2former') or ('/swinv2-' in leaf and not leaf.startswith('fpn/')):
        rate = 0.2 if 'camvid' in leaf else 0.4 if size == 'g' else 0.3  # as the paper has it
    assert cfg.model.backbone.drop_path_rate == rate
    last = build_on_meta(leaf).backbone.layers[-1].blocks[-1]
    rates = [m.drop_prob for m in last.modules() if hasattr(m, 'drop_prob')]
    assert rates
    assert max(rates) == pytest.approx(cfg.model.backbone.drop_path_rate)


@pytest.mark.parametrize('leaf', marking_variants(LEAVES, pytest.mark.long))
def test_norms_biases_position_mlps_and_logit_scales_are_not_decayed(leaf):
    cfg = read(leaf)
    model = build_on_meta(leaf)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(False)}
    exempt = dict.fromkeys(('norm', 'bias', 'q_bias', 'v_bias', 'cpb_mlp', 'logit_scale'), 0)
    others = NO_DECAY[6:]  # of transformers
    decayed = 0
    for name, parameter in model.named_parameters():
        kinds = [kind for kind in list(exempt)[1:] if kind in name] + ['norm'] * (
            parameter in norms
        )
        for kind in kinds:
            exempt[kind] += 1
        kinds += [kind for kind in others if kind in name]
        if not kinds and parameter.ndim < 2:
            kinds.append('one number per level')
        decayed += not kinds
        expected = 0.0 if kinds else cfg.optim_wrapper.optimizer.weight_decay
        assert decay.pop(parameter) == expected, name
    assert not decay
    assert decayed and all(exempt.values()), exempt
    assert cfg.optim_wrapper.optimizer.weight_decay > 0


@pytest.mark.parametrize('leaf', marking_variants(LEAVES, pytest.mark.long))
def test_batch_and_schedule_agree_with_the_name(leaf):
    cfg = read(leaf)
    assert not cfg.auto_scale_lr.get('enable')
    batch = re.search(r'_(\d+)xb(\d+)-(\d+)k[_-]', leaf)
    if batch:
        gpus, images, thousands = map(int, batch.groups())
        assert cfg.train_dataloader.batch_size == images
        assert cfg.auto_scale_lr.base_batch_size == gpus * images
        assert cfg.train_cfg.max_iters == thousands * 1000
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    elif '-50e_' in leaf and 'max_iters' in cfg.train_cfg:  # Mask2Former counts iterations
        assert cfg.train_cfg.max_iters == 368750 and cfg.auto_scale_lr.base_batch_size == 16
    elif epochs := re.search(r'-(\d)x_|_1x_|-(\d+)e_', leaf):
        expected = int(epochs[2]) if epochs[2] else 12 * int(epochs[1] or 1)
        assert cfg.train_cfg.max_epochs == expected and cfg.param_scheduler[-1].end == expected
        named = re.search(r'_(\d+)xb(\d+)-', leaf)
        batch_size = int(named[1]) * int(named[2]) if named else 8 if 'cityscapes' in leaf else 16
        assert cfg.auto_scale_lr.base_batch_size == batch_size
        loader = cfg.train_dataloader
        assert loader.batch_size == (int(named[2]) if named else batch_size // 8)
    elif '-45k_' in leaf:
        assert cfg.auto_scale_lr.base_batch_size == 96 and cfg.train_cfg.max_iters == 45000
    else:
        assert leaf.startswith('quickstart/')
        assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size
