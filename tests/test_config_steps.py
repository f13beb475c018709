"""Run a training and a prediction step of every config, on data in its layout."""

import copy
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner, set_random_seed
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from test_configs import CONFIGS, LEAVES, REAL_DATA, SMALL, marking_variants, read, scope_of

from swinv2_mm.datasets import generate_shapes
from swinv2_mm.datasets.checks import ConfiguredData, check_data
from swinv2_mm.datasets.checks.model import check_model
from swinv2_mm.engine.config import dicts_in, drop_pretrained, load_config
from swinv2_mm.engine.evaluation import use_tta
from swinv2_mm.models.backbones.arch import resolve_arch
from swinv2_mm.models.layers import DeformableSwinBlock

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
    for index in (1, 2):  # of COCO-Stuff
        maps = np.random.default_rng(index).integers(0, 182, (96, 128), np.uint8)
        write_image(root / 'coco' / 'stuffthingmaps' / 'train2017' / f'{index}.png', maps)
    return root


def at_data(monkeypatch, root: Path, leaf: str) -> Config:
    """Read a config with the data below `root`, or with samples of COCO and ADE20K in `SWINV2_MM_DATA`."""
    has_sample = REAL_DATA and re.search('coco|ade20k', leaf) and not leaf.startswith('htc/htc_')
    monkeypatch.setenv('SWINV2_MM_DATA', str(REAL_DATA if has_sample else root))
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root / 'shapes'))
    return load_config(str(CONFIGS / leaf))


def shrink(cfg: Config) -> None:
    """Use small images, and one block per stage with the widths of the config, from scratch."""
    drop_pretrained(cfg.model)
    arch = resolve_arch(cfg.model.backbone.arch)
    cfg.model.backbone.arch = dict(
        embed_dims=arch.embed_dims, depths=(1,) * len(arch.depths), num_heads=arch.num_heads
    )
    small = dict(scale=(96, 64), scales=[(96, 64)])
    small |= dict.fromkeys(('crop_size', 'img_scale', 'size'), (64, 64))
    for part in dicts_in(cfg._cfg_dict):
        part.update({key: value for key, value in small.items() if key in part})
        if part.get('ratio_range', [1])[0] < 0.5:  # objects would be lost
            part.ratio_range = (1.0, 1.0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    if cfg.default_scope == 'mmdet':
        for part in (cfg.model.get('train_cfg') or {}, cfg.model.test_cfg):
            for proposals in ('rpn', 'rpn_proposal'):
                part.get(proposals, {}).update(max_per_img=32, allowed_border=-1)
        # An untrained detector has low scores.
        cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0
    if 'num_queries' in cfg.model:  # no more than there are positions
        cfg.model.num_queries = 20


TESTED_IN_VIEWS = [
    'mask_rcnn/mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco.py',
    'cascade_rcnn/cascade-mask-rcnn_swinv2-t-p4-w8_fpn_ms-crop-3x_coco.py',
    'mask2former/mask2former_swinv2-t-p4-w8_8xb2-lsj-50e_coco.py',
    'upernet/swinv2-t-p4-w8-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    'mask2former/swinv2-t-p4-w8-in1k-pre_mask2former_8xb2-160k_ade20k-512x512.py',
]


@pytest.mark.parametrize('leaf', TESTED_IN_VIEWS)
def test_views_of_an_image_become_one_prediction(leaf, tiny_data, monkeypatch):
    cfg = at_data(monkeypatch, tiny_data, leaf)
    shrink(cfg)
    use_tta(cfg, (0.75, 1.0))
    with scope_of(cfg):
        set_random_seed(0)
        model = MODELS.build(cfg.model).eval()
        data = Runner.build_dataloader(
            dict(cfg.test_dataloader, num_workers=0, persistent_workers=False)
        )
        item = next(iter(data))
        assert len(item['inputs']) == 4
        with torch.no_grad():
            (merged,) = model.test_step(item)
            views = [model.module.test_step({k: v[i] for k, v in item.items()}) for i in range(4)]
    if cfg.default_scope == 'mmseg':
        logits = [view.seg_logits.data for (view,) in views]
        assert merged.pred_sem_seg.data.shape[-2:] == merged.ori_shape
        probabilities = torch.stack([value.softmax(dim=0) for value in logits]).mean(dim=0)
        top = probabilities.topk(2, dim=0)
        clear = top.values[0] - top.values[1] > 1e-4
        assert torch.equal(merged.pred_sem_seg.data[0][clear], top.indices[0][clear])
        return
    found = merged.pred_instances
    assert found.masks.shape == (len(found), *merged.ori_shape) and 0 < len(found) <= 100
    best = max(float(view.pred_instances.scores.max()) for (view,) in views)
    assert float(found.scores[0]) == pytest.approx(best)


def annotations_in(data_samples: list) -> int:
    """Return the number of instances that are not ignored, or of labelled pixels."""
    if 'gt_instances' in data_samples[0]:
        return sum(len(sample.gt_instances) for sample in data_samples)
    return sum(int((sample.gt_sem_seg.data != 255).sum()) for sample in data_samples)


IN_LAYOUT = [
    leaf for leaf in LEAVES if re.search('(coco|ade20k|pennfudan|camvid|shapes)[^/]*py$', leaf)
]
IN_LAYOUT = [leaf for leaf in IN_LAYOUT if not re.search('panoptic|stuff', leaf)]


@pytest.mark.parametrize('leaf', marking_variants(IN_LAYOUT, pytest.mark.long))
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

        cfg.val_dataloader.dataset.indices = 2
        loader = Runner.build_dataloader(cfg.val_dataloader)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.no_grad():
            for batch in loader:
                evaluator.process(model.eval().val_step(batch), batch)
        metrics = evaluator.evaluate(len(loader.dataset))
    key = cfg.default_hooks.checkpoint.get('save_best')
    assert key is None or key in metrics


@pytest.mark.parametrize('leaf', marking_variants(IN_LAYOUT, pytest.mark.long))
def test_the_checks_before_a_training_find_nothing(leaf, tiny_data, monkeypatch):
    cfg = at_data(monkeypatch, tiny_data, leaf)
    shrink(cfg)
    with scope_of(cfg):
        found = list(check_data(ConfiguredData(cfg, ('train', 'val'), sample=4)))
    assert not [
        str(one) for one in found if one.severity == 'error' or one.place.startswith('model')
    ]


@pytest.mark.parametrize(
    'leaf', marking_variants([f for f in LEAVES if f not in IN_LAYOUT], pytest.mark.long)
)
def test_the_model_of_a_config_for_other_data_fits(leaf):
    cfg = read(leaf)
    shrink(cfg)
    with scope_of(cfg):
        assert not [str(one) for one in check_model(ConfiguredData(cfg, ()))]


@pytest.mark.long
@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if leaf not in IN_LAYOUT])
def test_a_training_and_a_prediction_step_of_models_for_other_data(leaf):
    cfg = read(leaf)
    shrink(cfg)
    with scope_of(cfg):
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        if cfg.default_scope == 'mmdet':
            panoptic = 'panoptic' in leaf
            batch = demo_mm_inputs(
                2, (3, 64, 96), num_classes=8, with_mask=True, with_semantic=panoptic
            )
        else:
            samples = []
            for _ in range(2):
                sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
                sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
                samples.append(sample)
            batch = dict(
                inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, data_samples=samples
            )
        losses = model.train().train_step(copy.deepcopy(batch), wrapper)
        assert torch.isfinite(losses['loss'])
        with torch.no_grad():
            found = model.eval().val_step(batch)
    assert len(found) == 2


@pytest.mark.parametrize('leaf', SMALL)
def test_a_small_config_learns_a_batch_by_heart(leaf, tiny_data, monkeypatch):
    """Use full depth and the learning rate of the config, without randomness in training."""
    set_random_seed(0)  # heads sample regions
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
@pytest.mark.parametrize(
    'leaf', [f for f in IN_LAYOUT if re.search('-(t|nano)-', f) and not f.startswith('htc/htc_')]
)  # the sample of COCO has no maps of COCO-Stuff
def test_annotations_of_the_real_data_reach_the_model(leaf):
    cfg = load_config(str(CONFIGS / leaf))
    with scope_of(cfg):
        train = Runner.build_dataloader(
            {**cfg.train_dataloader, 'num_workers': 0, 'persistent_workers': False}
        ).dataset
        val = Runner.build_dataloader(
            {**cfg.val_dataloader, 'num_workers': 0, 'persistent_workers': False}
        ).dataset
    assert annotations_in([train[0]['data_samples']]) > 0
    assert annotations_in([val[0]['data_samples']]) > 0
