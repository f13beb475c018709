"""Build the classification configs, run a training and a prediction step, and transfer their weights."""

import os
import re
from pathlib import Path

import pytest
import torch
from image_files import write_cifar10, write_class_folders
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

import swinv2_mm
from swinv2_mm.datasets.checks import FILE_STAGES, ConfiguredData
from swinv2_mm.datasets.digits import write_digits
from swinv2_mm.models.backbones.arch import ARCHS

pytest.importorskip('mmpretrain')
pytest.importorskip('sklearn')

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
LEAVES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('classification/*.py'))
DIGITS = next(leaf for leaf in LEAVES if 'digits' in leaf)
CLASSES = {'cifar10': 10, 'digits': 10, 'places365': 365, 'imagenet': 1000}
FOLDERS = {'places365': 'places365_standard', 'imagenet': 'imagenet'}
NO_DECAY = ('bias', 'cpb_mlp', 'logit_scale')


def read(leaf: str) -> Config:
    return Config.fromfile(CONFIGS / leaf)


def scope():
    return DefaultScope.overwrite_default_scope('mmpretrain')


def dataset_of(leaf: str) -> str:
    return re.search('|'.join(CLASSES), leaf)[0]


def build_on_meta(cfg: Config) -> nn.Module:
    with scope(), torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_classification_config_is_found():
    assert sorted(map(dataset_of, LEAVES)) == ['cifar10', 'digits', 'imagenet', 'places365']


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_config_builds_the_model_that_its_name_says(leaf):
    cfg = read(leaf)
    assert cfg.custom_imports.imports == ['swinv2_mm']
    assert cfg.default_scope == 'mmpretrain'
    model = build_on_meta(cfg)
    backbone = model.backbone
    assert isinstance(backbone, swinv2_mm.SwinTransformerV2)
    assert backbone.out_indices == (3,)
    assert model.head.in_channels == backbone.out_channels[-1]
    assert model.head.num_classes == CLASSES[dataset_of(leaf)]
    assert model.data_preprocessor.num_classes == CLASSES[dataset_of(leaf)]
    size, patch, window = re.search(r'swinv2-(\w+)-p(\d)-w(\d+)_', leaf).groups()
    assert backbone.patch_embed.proj.kernel_size == (int(patch), int(patch))
    assert cfg.model.backbone.window_size == int(window)
    depths = tuple(len(stage.blocks) for stage in backbone.layers)
    if size == 't':
        assert depths == ARCHS['tiny'].depths
        assert backbone.out_channels == ARCHS['tiny'].dims[-1:]
    else:
        assert backbone.arch.embed_dims < ARCHS['tiny'].embed_dims
    side = re.search(r'-(\d+)x(\d+)\.py', leaf)
    if side:
        scales = [step.get('scale') for step in cfg.train_dataloader.dataset.pipeline]
        crops = [step.get('crop_size') for step in cfg.test_dataloader.dataset.pipeline]
        assert int(side[1]) == int(side[2]) in scales
        assert int(side[1]) in crops


@pytest.mark.parametrize('leaf', LEAVES)
def test_batch_and_schedule_agree_with_the_name(leaf):
    cfg = read(leaf)
    gpus, images, epochs = map(int, re.search(r'_(\d+)xb(\d+)-(\d+)e_', leaf).groups())
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert cfg.train_cfg.max_epochs == epochs
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, cosine.begin)
    assert (cosine.type, cosine.end) == ('CosineAnnealingLR', epochs)
    assert cfg.val_evaluator == dict(type='Accuracy', topk=(1, 5))


@pytest.mark.parametrize('leaf', [leaf for leaf in LEAVES if '-500e_' in leaf])
def test_the_recipe_of_the_project_that_this_one_grew_from(leaf):
    cfg = read(leaf)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-3, 0.05)
    assert cfg.param_scheduler[0].end == 10
    assert cfg.auto_scale_lr.base_batch_size == 256
    assert [step.type for step in cfg.model.train_cfg.augments] == ['Mixup', 'CutMix']
    (augment,) = (s for s in cfg.train_dataloader.dataset.pipeline if s.type == 'RandAugment')
    assert (augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (3, 9, 0.5)


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
    norms = {p for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(False)}
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        exempt = parameter in norms or any(kind in name for kind in NO_DECAY)
        assert decay.pop(parameter) == (0.0 if exempt else 0.05), name
        counts[exempt] += 1
    assert not decay and all(counts.values())


@pytest.fixture(scope='module')
def tiny_data(tmp_path_factory) -> Path:
    """Write a few real images for each dataset, in the layout that its config expects."""
    root = tmp_path_factory.mktemp('data')
    write_cifar10(root / 'cifar10')
    for name, folder in FOLDERS.items():
        write_class_folders(root / folder, [f'class_{i:04d}' for i in range(CLASSES[name])])
    write_digits(root / 'digits')
    return root


def at_data(monkeypatch, root: Path, leaf: str) -> Config:
    monkeypatch.setenv('SWINV2_MM_DATA', str(root))
    monkeypatch.setenv('SWINV2_MM_DIGITS', str(root / 'digits'))
    return read(leaf)


def shrink(cfg: Config) -> None:
    """Use batches of four small images, and one block per stage with the widths of the config."""
    arch = build_on_meta(cfg).backbone.arch
    cfg.model.backbone.arch = dict(
        embed_dims=arch.embed_dims, depths=(1,) * 4, num_heads=arch.num_heads
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        for step in loader.dataset.pipeline:
            for key in step.keys() & {'scale', 'crop_size'}:
                step[key] = min(step[key], 64)


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_training_and_a_prediction_step_on_data_of_its_layout(leaf, tiny_data, monkeypatch):
    cfg = at_data(monkeypatch, tiny_data, leaf)
    shrink(cfg)
    with scope():
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

        loader = Runner.build_dataloader(cfg.train_dataloader)
        assert len(loader.dataset.metainfo['classes']) == CLASSES[dataset_of(leaf)]
        batch = next(iter(loader))
        data = model.train().data_preprocessor(batch, training=True)
        assert data['inputs'].shape[:2] == (4, 3) and data['inputs'].abs().max() < 10
        loss, parts = model.parse_losses(model(**data, mode='loss'))
        assert torch.isfinite(loss), parts
        wrapper.backward(loss)
        gradients = {n: p.grad for n, p in model.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        assert gradients['head.fc.weight'].abs().max() > 0
        assert gradients['backbone.patch_embed.proj.weight'].abs().max() > 0
        wrapper.step()

        loader = Runner.build_dataloader(cfg.val_dataloader)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        batch = next(iter(loader))
        with torch.no_grad():
            outputs = model.eval().val_step(batch)
        evaluator.process(outputs, batch)
        metrics = evaluator.evaluate(4)
    assert outputs[0].pred_score.shape == (CLASSES[dataset_of(leaf)],)
    assert outputs[0].pred_score.sum() == pytest.approx(1, abs=1e-4)
    assert metrics.keys() == {'accuracy/top1', 'accuracy/top5'}


def test_the_small_config_learns_a_batch_by_heart(tiny_data, monkeypatch):
    cfg = at_data(monkeypatch, tiny_data, DIGITS)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    torch.manual_seed(0)
    with scope():
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
        losses = [model.train_step(batch, wrapper)['loss'].item() for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def dense_model(leaf: str, checkpoint: Path, **options) -> nn.Module:
    cfg = read(leaf)
    cfg.model.backbone.update(
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)), **options
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Return the model of the digits config with random weights, and its checkpoint as saved by mmengine."""
    torch.manual_seed(0)
    cfg = read(DIGITS)
    with scope():
        model = MODELS.build(cfg.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    path = tmp_path_factory.mktemp('classifier') / 'epoch_1.pth'
    torch.save(dict(meta=dict(epoch=1), state_dict=model.state_dict()), path)
    return model, path


@pytest.mark.parametrize(
    'leaf',
    sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.glob('quickstart/*nano*.py')),
)
def test_the_quickstarts_start_from_all_weights_of_the_digits_classifier(leaf, classifier):
    source, checkpoint = classifier
    model = dense_model(leaf, checkpoint)
    assert model.backbone.window_sizes != source.backbone.window_sizes
    model.backbone.init_weights()
    count = 0
    for name, parameter in source.backbone.named_parameters():
        assert torch.equal(model.backbone.get_parameter(name), parameter), name
        count += 1
    fresh = {n for n, _ in model.backbone.named_parameters()} - {
        n for n, _ in source.backbone.named_parameters()
    }
    assert count > 100
    assert fresh == {f'norm{stage}.{kind}' for stage in range(3) for kind in ('weight', 'bias')}
    # the last stage has window 4 and keeps the coordinates of its training window 8
    windows = model.backbone.state_dict()['pretrained_window_sizes']
    assert windows.tolist() == [[8, 8]] * 4


def test_the_report_says_that_all_weights_are_loaded(classifier):
    source, checkpoint = classifier
    backbone = swinv2_mm.SwinTransformerV2(
        dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)), out_indices=(0, 1, 2)
    )
    report = swinv2_mm.checkpoints.load_pretrained(backbone, checkpoint)
    built = {n for n, _ in backbone.named_parameters() if not n.startswith('norm')}
    assert set(report.loaded) == built
    assert not report.problems and not report.missing and not report.unexpected
    assert report.dropped['outside the backbone'] == ['head.fc.weight', 'head.fc.bias']
    left_out = report.dropped['stages and norms that the model does not have']
    assert all(
        name.startswith(('layers.3.', 'layers.2.downsample.', 'norm3.')) for name in left_out
    )
    assert len(left_out) + len(built) == len(list(source.backbone.named_parameters()))


def test_another_patch_size_is_told_in_words(classifier):
    quickstart = 'quickstart/mask-rcnn_swinv2-nano_fpn_shapes.py'
    model = dense_model(quickstart, classifier[1], patch_size=2)
    with pytest.raises(swinv2_mm.checkpoints.CheckpointError, match=r'patch_embed\.proj\.weight'):
        model.backbone.init_weights()


@pytest.mark.skipif(
    not Path(os.environ.get('SWINV2_MM_DATA', '')).joinpath('cifar10').is_dir(),
    reason='SWINV2_MM_DATA does not name a folder with cifar10',
)
def test_the_official_files_of_cifar_10_are_read():
    cfg = read(next(leaf for leaf in LEAVES if 'cifar10' in leaf))
    with scope():
        loader = Runner.build_dataloader(
            dict(cfg.val_dataloader, num_workers=0, persistent_workers=False)
        )
    assert len(loader.dataset) == 10000


def test_the_config_for_data_of_ones_own_in_the_docs(tmp_path, monkeypatch):
    """Run the config on a dataset with its number of classes."""
    page = (CONFIGS.parent / 'docs/classification.md').read_text()
    (text,) = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    write_class_folders(tmp_path / 'data/pets', [f'pet_{letter}' for letter in 'abcdefghijkl'])
    monkeypatch.chdir(tmp_path)
    base = re.search(r"'\./(.+)'", text)[1]
    config = tmp_path / 'mine.py'
    config.write_text(text.replace('./' + base, str(CONFIGS / 'classification' / base)))
    cfg = Config.fromfile(config)
    parts = ('train', 'val', 'test')
    data = ConfiguredData(cfg, parts)
    assert not [finding for stage in FILE_STAGES for check in stage for finding in check(data)]
    with scope():
        for part in parts:
            loader = dict(cfg[f'{part}_dataloader'], num_workers=0, persistent_workers=False)
            dataset = Runner.build_dataloader(loader).dataset
            assert len(dataset) == len(dataset.metainfo['classes']) == 12
            assert (
                f'/{"train" if part == "train" else "val"}/' in dataset[0]['data_samples'].img_path
            )
        assert build_on_meta(cfg).head.fc.out_features == 12
