"""Build every config with the registries, and run a training and a prediction step."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from timm.models.swin_transformer_v2 import default_cfgs
from torch import nn

import swinv2_mm
from swinv2_mm.checkpoints.windows import windows_of_name
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.config import drop_pretrained
from swinv2_mm.models.backbones.arch import ARCHS, resolve_arch
from swinv2_mm.models.layers import DeformableSwinBlock

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL_LEAVES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('[!_]*/**/*.py'))
# Classification configs, which need mmpretrain, are tested in test_classification_configs.py.
LEAVES = [leaf for leaf in ALL_LEAVES if not leaf.startswith('classification/')]
PUBLISHED = [leaf for leaf in LEAVES if re.search(r'swinv2-[tsbl]-', leaf)]
SMALL = [leaf for leaf in LEAVES if 'swinv2-nano' in leaf]
REAL_DATA = os.environ.get('SWINV2_MM_DATA')

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
DROP_PATH = {
    ('mask-rcnn', 'coco'): dict(t=0.2, s=0.3, b=0.3, l=0.3),
    ('mask-rcnn', 'pennfudan'): dict(t=0.2),
    ('upernet', 'ade20k'): dict(t=0.3, s=0.3, b=0.3, l=0.3),
    ('upernet', 'camvid'): dict(t=0.2),
    ('fpn', 'ade20k'): dict(t=0.2),
}


def read(leaf: str) -> Config:
    return Config.fromfile(CONFIGS / leaf)


def scope_of(cfg: Config):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the real modules at full size without allocating weights."""
    with scope_of(cfg), torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_config_of_the_project_is_found():
    assert len(LEAVES) >= 15
    assert len(PUBLISHED) >= 11
    assert len(SMALL) >= 4
    found = {leaf.split('/')[0] for leaf in LEAVES}
    assert found >= {'mask_rcnn', 'upernet', 'fpn', 'quickstart'}


def test_every_base_file_is_used_by_a_config():
    """A base that no config uses would not be tested."""

    def bases_of(path: Path) -> set[Path]:
        bases = Config._get_base_files(str(path)) or []
        direct = {(path.parent / base).resolve() for base in bases}
        return direct.union(*(bases_of(base) for base in direct))

    used = set().union(*(bases_of(CONFIGS / leaf) for leaf in ALL_LEAVES))
    assert set((CONFIGS / '_base_').rglob('*.py')) <= used


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_builds_the_model_that_its_name_says(leaf):
    cfg = read(leaf)
    assert cfg.custom_imports.imports == ['swinv2_mm']
    assert 'ResNet' not in cfg.pretty_text
    model = build_on_meta(cfg)
    backbone = model.backbone
    assert isinstance(backbone, swinv2_mm.SwinTransformerV2)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())  # `sync_bn` converts
    assert cfg.sync_bn == 'torch'
    if hasattr(model, 'neck') and model.neck is not None:
        assert tuple(model.neck.in_channels) == backbone.out_channels
    window = re.search(r'-w(\d+)', leaf)
    if window:
        assert cfg.model.backbone.window_size == int(window[1])
    depths = tuple(len(stage.blocks) for stage in backbone.layers)
    size = re.search(r'swinv2-(\w+?)[-_]', leaf)[1]
    if size == 'nano':
        assert backbone.out_channels[0] < ARCHS['tiny'].embed_dims
    else:
        (arch,) = (arch for name, arch in ARCHS.items() if name[0] == size)
        assert (backbone.out_channels, depths) == (arch.dims, arch.depths)
    crop = re.search(r'-(\d+)x(\d+)\.py', leaf)
    if crop:
        assert cfg.model.data_preprocessor.size == (int(crop[1]), int(crop[2]))


STOCK = [leaf for leaf in LEAVES if 'coco' in leaf or 'ade20k' in leaf]


@pytest.mark.parametrize('leaf', LEAVES)
def test_only_coco_and_ade20k_start_from_weights_those_of_their_size_and_window(leaf):
    cfg = read(leaf)
    if leaf not in STOCK:
        assert 'Pretrained' not in cfg.pretty_text
        return
    assert len(STOCK) == 10
    backbone = cfg.model.backbone
    assert backbone.init_cfg.keys() == {'type', 'checkpoint'}
    assert backbone.init_cfg.type == 'Pretrained'
    address = backbone.init_cfg.checkpoint
    # timm has its own list of the official files.
    official = {entry.url for cfgs in default_cfgs.values() for entry in cfgs.cfgs.values()}
    assert address in official
    name = address.rsplit('/')[-1]
    assert name.startswith(f'swinv2_{backbone.arch}_patch4_window{backbone.window_size}_')
    trained = [pair[0] for pair in windows_of_name(name).windows]
    assert trained == ([12, 12, 12, 6] if backbone.arch == 'large' else [8, 8, 8, 8])
    assert ('22k' in name) == (backbone.arch == 'large')
    if 'ade20k' in leaf:
        assert ('-in22k-pre_' if '22k' in name else '-in1k-pre_') in leaf
    assert drop_pretrained(cfg.model) == 1  # as --no-pretrained
    assert backbone.init_cfg is None


@pytest.mark.parametrize('leaf', STOCK)
def test_building_a_stock_config_asks_for_no_file(leaf, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert build_on_meta(read(leaf)).backbone.init_cfg is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('leaf', [leaf for leaf in STOCK if re.search('swinv2-(t|l)-p4', leaf)])
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
    file = tmp_path / 'hub/checkpoints' / cfg.model.backbone.init_cfg.checkpoint.rsplit('/')[-1]
    file.parent.mkdir(parents=True)
    torch.save({'model': state}, file)

    options.update(init_cfg=cfg.model.backbone.init_cfg, norm_cfg=dict(type='LN'))
    backbone = swinv2_mm.SwinTransformerV2(**options)
    backbone.init_weights()
    for name, parameter in source.named_parameters():
        assert torch.equal(backbone.get_parameter(name), parameter), name
    windows = [12, 12, 12, 6] if '-l-' in leaf else [8, 8, 8, 8]
    assert backbone.state_dict()['pretrained_window_sizes'].tolist() == [[w, w] for w in windows]


@pytest.mark.parametrize('leaf', PUBLISHED)
def test_the_drop_path_rate_belongs_to_the_size(leaf):
    method, dataset = (
        re.search(f'_?({names})_?', leaf.split('/')[1])[1]
        for names in ('mask-rcnn|upernet|fpn', 'coco|pennfudan|ade20k|camvid')
    )
    size = re.search(r'swinv2-(\w)-', leaf)[1]
    cfg = read(leaf)
    assert cfg.model.backbone.drop_path_rate == DROP_PATH[method, dataset][size]
    last = build_on_meta(cfg).backbone.layers[-1].blocks[-1]
    rates = [m.drop_prob for m in last.modules() if hasattr(m, 'drop_prob')]
    assert rates
    assert max(rates) == pytest.approx(cfg.model.backbone.drop_path_rate)


@pytest.mark.parametrize('leaf', LEAVES)
def test_norms_biases_position_mlps_and_logit_scales_are_not_decayed(leaf):
    cfg = read(leaf)
    model = build_on_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    norms = {p for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(False)}
    exempt = dict.fromkeys(('norm', 'bias', 'q_bias', 'v_bias', 'cpb_mlp', 'logit_scale'), 0)
    decayed = 0
    for name, parameter in model.named_parameters():
        kinds = [kind for kind in list(exempt)[1:] if kind in name] + ['norm'] * (
            parameter in norms
        )
        for kind in kinds:
            exempt[kind] += 1
        decayed += not kinds
        expected = 0.0 if kinds else cfg.optim_wrapper.optimizer.weight_decay
        assert decay.pop(parameter) == expected, name
    assert not decay
    assert decayed and all(exempt.values()), exempt
    assert cfg.optim_wrapper.optimizer.weight_decay > 0


@pytest.mark.parametrize('leaf', LEAVES)
def test_batch_and_schedule_agree_with_the_name(leaf):
    cfg = read(leaf)
    assert cfg.auto_scale_lr.enable is False
    batch = re.search(r'_(\d+)xb(\d+)-(\d+)k_', leaf)
    if batch:
        gpus, images, thousands = map(int, batch.groups())
        assert cfg.train_dataloader.batch_size == images
        assert cfg.auto_scale_lr.base_batch_size == gpus * images
        assert cfg.train_cfg.max_iters == thousands * 1000
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    elif '_1x_' in leaf:
        assert cfg.auto_scale_lr.base_batch_size == 16
        assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[-1].milestones) == (12, [8, 11])
    else:
        assert leaf.startswith('quickstart/')
        assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size


# --- one step of each config, on data in its layout --------------------------------------------


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_coco(root: Path, folder: str, name: str, classes: list[str], run_lengths: bool) -> None:
    """Write two images with two boxes each; masks are polygons or uncompressed run lengths."""
    images, annotations = [], []
    for image_id in (1, 2):
        pixels = np.random.default_rng(image_id).integers(0, 255, (96, 128, 3), dtype=np.uint8)
        write_image(root / folder / f'{image_id}.jpg', pixels)
        images.append(dict(id=image_id, file_name=f'{image_id}.jpg', width=128, height=96))
        for x, y in ((8, 10), (70, 30)):
            polygon = [[x, y, x + 48, y, x + 48, y + 60, x, y + 60]]
            column = [60, 36]  # run lengths are column-major, background first
            runs = [x * 96 + y, *(column * 47), 60, (128 - x - 48) * 96 + 36 - y]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=1 + len(annotations) % len(classes),
                    iscrowd=0,
                    area=48 * 60,
                    bbox=[x, y, 48, 60],
                    segmentation=dict(size=[96, 128], counts=runs) if run_lengths else polygon,
                )
            )
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(classes)]
    path = root / 'annotations' / f'instances_{name}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def write_label_maps(root: Path, split: str, labels: tuple[int, ...]) -> None:
    for index in range(2):
        rng = np.random.default_rng(index)
        write_image(
            root / 'images' / split / f'{index}.jpg', rng.integers(0, 255, (96, 128, 3), np.uint8)
        )
        label_map = np.repeat(np.resize(labels, 16), 8)[None].repeat(96, axis=0).astype(np.uint8)
        write_image(root / 'annotations' / split / f'{index}.png', label_map)


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory) -> Path:
    """Write two images for each split of each dataset, in the layouts that the configs expect."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('data')
    coco_classes = list(CocoDataset.METAINFO['classes'])
    for split in ('train', 'val'):
        write_coco(root / 'coco', f'{split}2017', f'{split}2017', coco_classes, run_lengths=False)
        write_coco(root / 'pennfudan', split, split, ['person'], run_lengths=True)
    for split in ('training', 'validation'):
        write_label_maps(root / 'ade' / 'ADEChallengeData2016', split, (0, 1, 75, 150))
    for split in ('train', 'val', 'test'):
        write_label_maps(root / 'camvid', split, (0, 5, 10, 255))
    generate_shapes(root / 'shapes', num_train=2, num_val=2, image_size=(64, 64))
    return root


def at_data(monkeypatch, root: Path, leaf: str) -> Config:
    monkeypatch.setenv('SWINV2_MM_DATA', str(root))
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root / 'shapes'))
    return read(leaf)


def shrink(cfg: Config) -> None:
    """Use small images, and one block per stage with the widths of the config, from scratch."""
    drop_pretrained(cfg.model)
    arch = resolve_arch(cfg.model.backbone.arch)
    cfg.model.backbone.arch = dict(
        embed_dims=arch.embed_dims, depths=(1,) * len(arch.depths), num_heads=arch.num_heads
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if 'scale' in transform:
                transform.scale = (96, 64)
            if 'crop_size' in transform:
                transform.crop_size = (64, 64)
    cfg.train_dataloader.batch_size = 2
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    if cfg.default_scope == 'mmdet':
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 32
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # an untrained detector has low scores


def annotations_in(data_samples: list) -> int:
    """Return the number of instances that are not ignored, or of labelled pixels."""
    if 'gt_instances' in data_samples[0]:
        return sum(len(sample.gt_instances) for sample in data_samples)
    return sum(int((sample.gt_sem_seg.data != 255).sum()) for sample in data_samples)


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_training_and_a_prediction_step_on_data_of_its_layout(leaf, tiny_data, monkeypatch):
    cfg = at_data(monkeypatch, tiny_data, leaf)
    shrink(cfg)
    with scope_of(cfg):
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
        data = model.train().data_preprocessor(batch, training=True)
        assert annotations_in(data['data_samples']) > 0
        loss, parts = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss), parts
        wrapper.backward(loss)
        gradients = {n: p.grad for n, p in model.backbone.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        assert gradients['patch_embed.proj.weight'].abs().max() > 0
        assert gradients['norm3.weight'].abs().max() > 0
        wrapper.step()

        loader = Runner.build_dataloader(cfg.val_dataloader)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.no_grad():
            for batch in loader:
                evaluator.process(model.eval().val_step(batch), batch)
        metrics = evaluator.evaluate(len(loader.dataset))
    key = cfg.default_hooks.checkpoint.save_best
    assert key is None or key in metrics


@pytest.mark.parametrize('leaf', SMALL)
def test_a_small_config_learns_a_batch_by_heart(leaf, tiny_data, monkeypatch):
    """Use full depth and the learning rate of the config, without randomness in training."""
    cfg = at_data(monkeypatch, tiny_data, leaf)
    arch = cfg.model.backbone.arch
    shrink(cfg)
    cfg.model.backbone.update(arch=arch, drop_path_rate=0.0)
    with scope_of(cfg):
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
        losses = [model.train_step(batch, wrapper)['loss'].item() for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_deformable_config_learns_where_to_look(tiny_data, monkeypatch):
    leaf = 'mask_rcnn/mask-rcnn_swinv2-t-deform-p4-w8_fpn_1x_coco.py'
    cfg = at_data(monkeypatch, tiny_data, leaf)
    shrink(cfg)
    with scope_of(cfg):
        model = MODELS.build(cfg.model)
        model.init_weights()
        blocks = [m for m in model.backbone.modules() if isinstance(m, DeformableSwinBlock)]
        assert len(blocks) == 3 and model.backbone.out_channels == (96, 192, 384, 768)
        assert all(block.offset_network[2].weight.eq(0).all() for block in blocks)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
        # Branches start scaled by zero: the first step changes their scale, the second trains their weights.
        losses = [model.train_step(batch, wrapper)['loss'].item() for _ in range(2)]
    assert np.isfinite(losses).all()
    assert all(block.offset_network[2].weight.abs().max() > 0 for block in blocks)


@pytest.mark.skipif(not REAL_DATA, reason='SWINV2_MM_DATA does not name a folder of real data')
@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if re.search('-(t|nano)-', leaf)])
def test_annotations_of_the_real_data_reach_the_model(leaf, monkeypatch):
    cfg = read(leaf)
    with scope_of(cfg):
        train = Runner.build_dataloader(
            {**cfg.train_dataloader, 'num_workers': 0, 'persistent_workers': False}
        ).dataset
        val = Runner.build_dataloader(
            {**cfg.val_dataloader, 'num_workers': 0, 'persistent_workers': False}
        ).dataset
    assert annotations_in([train[0]['data_samples']]) > 0
    assert annotations_in([val[0]['data_samples']]) > 0
