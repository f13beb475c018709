"""Reading a config, and what the command line changes in it."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS

from swinv2_mm import shipped
from swinv2_mm.engine.config import (
    complete_config,
    drop_pretrained,
    enable_amp,
    enable_lr_scaling,
    find_config,
    limit_iterations,
    load_config,
    set_work_dir,
)
from swinv2_mm.engine.console import start_logging
from swinv2_mm.engine.errors import SetupError


def written(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    return str(path)


NAME = 'mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco'


@pytest.mark.parametrize('end', ['', '.py'])
@pytest.mark.parametrize('start', ['', 'mask_rcnn/', 'configs/mask_rcnn/'])
def test_a_config_is_found_by_its_name(start, end, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(f'{start}{NAME}{end}').filename.endswith(f'configs/mask_rcnn/{NAME}.py')


def test_a_file_is_taken_before_the_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f'{NAME}.py').touch()
    assert find_config(NAME) == f'{NAME}.py'


def test_every_name_means_one_config():
    leaves = [path.stem for path in shipped.folder().glob('configs/[!_]*/**/*.py')]
    assert len(leaves) > 12 and [Path(find_config(name)).stem for name in leaves] == leaves


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (f'{NAME[:-1]}.py', rf'does not exist; did you mean {NAME}\?'),
        (f'/data/{NAME}', f'does not exist; did you mean {NAME}'),
        ('./mnie.py', r'./mnie.py does not exist; did you mean mine\?'),
        (
            'cascade_swinv2-b-w16',
            r'did you mean cascade-mask-rcnn_swinv2-b-p4-w16_fpn_ms-crop-3x_coco\?',
        ),
        ('quite_another', r'does not exist\.$'),
        ('', r'does not exist'),
        ('_base_/models/upernet_swinv2', r'does not exist'),
    ],
)
def test_a_missing_config_is_reported_with_the_one_that_was_meant(
    name, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').touch()
    with pytest.raises(SetupError, match=message):
        load_config(name)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(\n', r'cannot be read: .*SyntaxError'),
        ("_base_ = './no_such_base.py'\n", r'cannot be read: .*no_such_base'),
        ('model = undefined_name\n', 'cannot be read: NameError: .*undefined_name'),
        ("custom_imports = dict(imports=['no_such_module'])\n", 'cannot be read: ImportError'),
        ('model = dict()\n', 'default_scope=None'),
        ("default_scope = 'mmdet'\n", 'defines no model'),
        ("default_scope = 'mmdet'\nmodel = dict()\nrunner_type = 'Mine'\n", "runner_type='Mine'"),
    ],
)
def test_a_config_that_cannot_run_says_why(tmp_path, text, message):
    with pytest.raises(SetupError, match=message):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_cfg', 'expected KEY=VALUE'),
        ('=3', 'expected KEY=VALUE'),
        ('train_cfg.max_iters=[1,(2]', 'brackets do not match'),
        ('train_cfg.max_epochs.deeper=3', 'train_cfg.max_epochs.deeper=3'),
        ("custom_hooks=[dict(type='EMAHook'", 'expected a value in Python'),
        ("custom_hooks=[dict(type='EMAHook', momentum=open('x'))]", 'expected a value in Python'),
        ("custom_hooks=[{'type': 'A', []: 1}]", 'expected a value in Python'),
        ("custom_hooks=[dict(type='A', **3)]", 'expected a value in Python'),
        ('load_from=a(1,2).pth', 'expected a value in Python'),
    ],
)
def test_an_option_that_cannot_be_merged_is_named(detection_config, option, message):
    with pytest.raises(SetupError, match=message.replace('[', r'\[')):
        load_config(detection_config, [option])


def test_options_override_values_and_list_items(detection_config, capsys):
    start_logging(rank=0)
    cfg = load_config(
        detection_config,
        [
            'train_dataloader.batch_size=3',
            'param_scheduler.0.end=7',
            'model.backbone.wiht_cp=True',
        ],
    )
    assert cfg.train_dataloader.batch_size == 3
    assert cfg.param_scheduler[0].end == 7
    warning = capsys.readouterr().out
    assert 'model.backbone.wiht_cp: not in the config so far' in warning
    assert 'batch_size' not in warning


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        (
            "[dict(type='EMAHook', momentum=0.1), {'type': 'B'}]",
            [{'type': 'EMAHook', 'momentum': 0.1}, {'type': 'B'}],
        ),
        (
            "dict(type='A', sizes=[(1, 2), dict(a=None)])",
            {'type': 'A', 'sizes': [(1, 2), {'a': None}]},
        ),
        ('{}', {}),
        ('[dict()]', ['dict()']),
        ('epoch_{}.pth', 'epoch_{}.pth'),
        ('{}.pth', '{}.pth'),
        ('[{}.jpg,{:06d}.png]', ['{}.jpg', '{:06d}.png']),
        ('1,2', [1, 2]),
    ],
)
def test_values_of_options(detection_config, text, value):
    assert load_config(detection_config, [f'mine={text}']).mine == value


def test_the_work_directory_defaults_to_the_name_of_the_config(
    detection_cfg, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    set_work_dir(detection_cfg, None)
    assert detection_cfg.work_dir == 'work_dirs/mask-rcnn_swinv2-nano_fpn_shapes'
    assert (tmp_path / detection_cfg.work_dir).is_dir()


def test_a_work_directory_that_cannot_be_written_to(detection_cfg, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SetupError, match=r'cannot be written to .*--work-dir'):
        set_work_dir(detection_cfg, str(tmp_path / 'file' / 'run'))


def test_lr_scaling_needs_a_base_batch_size(detection_cfg):
    enable_lr_scaling(detection_cfg)
    assert detection_cfg.auto_scale_lr.enable
    detection_cfg.auto_scale_lr = None
    with pytest.raises(SetupError, match='base_batch_size'):
        enable_lr_scaling(detection_cfg)


@pytest.mark.parametrize('capability', [(7, 5), (8, 0)])
def test_amp_suits_the_device(detection_cfg, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    gpu, cpu = torch.device('cuda'), torch.device('cpu')
    wrapper = detection_cfg.optim_wrapper
    best = 'bf16' if capability >= (8, 0) else 'fp16'
    assert enable_amp(detection_cfg, gpu) == best
    assert (wrapper.type == 'AmpOptimWrapper') == (best == 'fp16')
    assert enable_amp(detection_cfg, gpu, 'fp16') == 'fp16'
    assert (wrapper.type, wrapper.loss_scale, wrapper.dtype) == (
        'AmpOptimWrapper',
        'dynamic',
        'float16',
    )
    assert enable_amp(detection_cfg, gpu) == 'fp16'  # what the config says
    assert enable_amp(detection_cfg, gpu, 'bf16') == 'bf16'
    assert wrapper.type == 'swinv2_mm.AutocastOptimWrapper'
    wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    assert enable_amp(detection_cfg, cpu) == 'bf16'
    assert wrapper.type == 'swinv2_mm.AutocastOptimWrapper' and 'loss_scale' not in wrapper
    with pytest.raises(SetupError, match='fp16 is for GPUs'):
        enable_amp(detection_cfg, cpu, 'fp16')
    wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(SetupError, match='ApexOptimWrapper'):
        enable_amp(detection_cfg, cpu)


def test_worker_settings_without_workers_are_dropped(detection_cfg):
    assert detection_cfg.train_dataloader.persistent_workers
    complete_config(detection_cfg)
    assert detection_cfg.train_dataloader.persistent_workers
    detection_cfg.train_dataloader.update(num_workers=0, prefetch_factor=4)
    complete_config(detection_cfg)
    assert not {'persistent_workers', 'prefetch_factor'} & set(detection_cfg.train_dataloader)


def test_fewer_iterations_than_one_are_refused(detection_cfg):
    with pytest.raises(SetupError, match='--max-iters 0'):
        limit_iterations(detection_cfg, 0)


def learning_rates(schedulers, epoch_length, num_iters):
    """The learning rate of every iteration, stepped as mmengine's hook steps it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    built = [
        PARAM_SCHEDULERS.build(
            dict(scheduler), default_args=dict(optimizer=optimizer, epoch_length=epoch_length)
        )
        for scheduler in schedulers
    ]
    rates = []
    for iteration in range(1, num_iters + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


def test_a_shortened_epoch_schedule_keeps_its_learning_rates(detection_cfg):
    detection_cfg.train_cfg.max_epochs = 12
    detection_cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
        dict(type='MultiStepLR', begin=0, by_epoch=True, milestones=[2, 4], gamma=0.1),
    ]
    full = [dict(scheduler) for scheduler in detection_cfg.param_scheduler]
    words = limit_iterations(detection_cfg, 40)
    assert words == '40 iterations instead of 12 epochs, then one validation'
    assert learning_rates(detection_cfg.param_scheduler, 10, 40) == pytest.approx(
        learning_rates(full, 10, 40)
    )
    assert learning_rates(full, 10, 40)[-1] == pytest.approx(0.1)  # the schedule did something
    assert detection_cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert detection_cfg.train_cfg.val_interval == 40
    assert detection_cfg.default_hooks.checkpoint.interval == 40
    assert not detection_cfg.default_hooks.checkpoint.by_epoch


def test_a_shortened_iteration_schedule_keeps_its_end(segmentation_cfg):
    segmentation_cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=10)
    segmentation_cfg.param_scheduler = dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False)
    words = limit_iterations(segmentation_cfg, 4)
    assert words == '4 iterations instead of 100, then one validation'
    assert segmentation_cfg.param_scheduler.end == 100
    assert segmentation_cfg.train_cfg.max_iters == 4


def test_a_trial_keeps_the_interval_of_the_checkpoints(segmentation_cfg):
    segmentation_cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=10)
    segmentation_cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    limit_iterations(segmentation_cfg, 4)
    assert segmentation_cfg.default_hooks.checkpoint.interval == 3


def test_an_option_for_a_variable_that_is_already_used_names_the_place(capsys):
    start_logging(0)
    load_config(NAME, ['train_pipeline.2.scale=(512,512)', 'model.backbone.window_size=16'])
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if 'variable' in line]
    assert 'train_pipeline.2.scale changes' in warning
    assert 'train_dataloader.dataset.pipeline.2.scale: change that' in warning


def test_a_training_from_scratch_drops_all_pretrained_weights():
    backbone = dict(type='ResNetV1c', pretrained='torchvision://resnet50')
    model = dict(
        pretrained='open-mmlab://resnet50_v1c', backbone=backbone, neck=dict(init_cfg=None)
    )
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint='x.pth')
    assert drop_pretrained(model) == 3
    assert model['pretrained'] is backbone['pretrained'] is backbone['init_cfg'] is None


def test_a_shipped_config_that_mmengine_does_not_find(tmp_path, monkeypatch):
    wrong = 'mask-rcnn_swinv2-t-p4-w8_1x_coco'
    config = written(tmp_path, f"_base_ = 'swinv2_mm::mask_rcnn/{wrong}.py'")
    with pytest.raises(
        SetupError, match=r'in a checkout, write the path of the config in .*configs\.$'
    ):
        load_config(config)
    installed = tmp_path / 'swinv2_mm' / '.mim'
    installed.parent.mkdir()
    installed.symlink_to(shipped.folder())
    monkeypatch.setattr(shipped, 'folder', lambda: installed)
    monkeypatch.setattr(
        'mmengine.config.config.get_installed_path', lambda package: str(installed.parent)
    )
    with pytest.raises(
        SetupError, match=rf'The config {wrong} does not exist; did you mean {NAME}'
    ):
        load_config(config)
    config = written(tmp_path, f"_base_ = 'swinv2_mm::faster_rcnn/{NAME}.py'")
    with pytest.raises(SetupError, match=rf'The config is swinv2_mm::mask_rcnn/{NAME}\.py\.$'):
        load_config(config)
