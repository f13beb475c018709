"""Settings that would end in an assertion of a library in the middle of a run, through the tool's own function."""

import json
import re
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.hooks import EMAHook
from tiny_run import build
from tool_runs import FAST, ROOT, SEGMENTATION

from swinv2_mm.engine.launch import train
from swinv2_mm.engine.schedules import schedule_faults


def refused(capsys, *options, **kwargs):
    """Run the tool's function and return the one line that it stops with."""
    code = train(SEGMENTATION, cfg_options=[*FAST, *options], **kwargs)
    seen = capsys.readouterr()
    assert code == 2, seen.out + seen.err
    assert 'Iter(train)' not in seen.out
    (line,) = seen.err.splitlines()
    return line


def test_batches_of_one_image_stop_before_the_first_step(root, capsys):
    line = refused(capsys, 'train_dataloader.batch_size=1')
    assert 'model.decode_head.psp_modules.0.1.bn' in line and 'batch_size is 1' in line


def test_a_validation_of_several_sizes_stops_before_the_training(root, capsys):
    for folder in ('images', 'annotations'):
        path = str(root / folder / 'validation' / 'shape_00003.png')
        image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(path, cv2.resize(image, (96, 64), interpolation=cv2.INTER_NEAREST))
    line = refused(capsys, 'val_dataloader.batch_size=4')
    assert 'val_dataloader.batch_size is 4, and its images, which have several sizes' in line


def test_sync_bn_trains_on_one_cpu(root, capsys):
    options = [*FAST, 'model.decode_head.norm_cfg.type=SyncBN', 'train_dataloader.batch_size=2']
    run = dict(work_dir='run', device='cpu', max_iters=1, cfg_options=options)
    assert train(SEGMENTATION, **run) == 0
    assert 'SyncBN runs as BN' in capsys.readouterr().out
    assert set(json.loads((root.parent / 'run' / 'metrics.json').read_text())) >= {'mIoU'}


def test_no_workers_need_no_further_settings(root):
    options = [f'{part}_dataloader.num_workers=0' for part in ('train', 'val', 'test')]
    run = dict(work_dir='run', device='cpu', max_iters=1)
    assert train(SEGMENTATION, cfg_options=[*options, 'train_dataloader.batch_size=2'], **run) == 0


def test_a_second_training_of_the_process_has_its_own_files_and_names_the_checkpoints_of_the_first(
    root, capsys
):
    options = [*FAST, 'train_dataloader.batch_size=2', 'val_dataloader.dataset.indices=1']
    for work_dir in ('first', 'second', 'first'):
        capsys.readouterr()
        run = dict(work_dir=work_dir, device='cpu', max_iters=1, cfg_options=options)
        assert train(SEGMENTATION, **run) == 0
    assert 'first has checkpoints of an earlier training' in capsys.readouterr().out
    assert len(list(root.parent.glob('first/*/vis_data/scalars.json'))) == 2
    assert len(list(root.parent.glob('second/*/vis_data/scalars.json'))) == 1


@pytest.mark.parametrize(
    ('option', 'sentences'),
    [
        ('model.backbone.out_indices=(0,1,2,3,4)', ['out_indices']),
        ('model.backbone.window_size=0', ['window_size']),
    ],
)
def test_arguments_that_the_backbone_refuses(root, capsys, option, sentences):
    line = refused(capsys, option)
    assert 'The model cannot be built' in line
    assert all(sentence in line for sentence in sentences)


@pytest.mark.parametrize(
    'key',
    [
        'model.backbone.depth',
        'optim_wrapper.optimizer.lrr',
        'train_dataloader.batch_sise',
        'train_dataloader.dataset.pipelin',
        'default_hooks.checkpoint.intervall',
        'param_scheduler.0.endd',
        'visualizer.x',
    ],
)
def test_keys_that_nothing_takes(root, capsys, key):
    line = refused(capsys, f'{key}=50')
    name = key.rpartition('.')[2]
    assert f"unexpected keyword argument '{name}'" in line and '_delete_=True' in line


def test_a_key_of_a_transform_names_the_transforms(root, capsys):
    line = refused(capsys, 'train_dataloader.dataset.pipeline.3.scales=50')
    assert "unexpected keyword argument 'scales'" in line and '0 LoadImageFromFile, 1 ' in line


def test_a_part_that_refuses_its_arguments_without_a_message(root, capsys):
    line = refused(capsys, 'model.decode_head.in_channels=[32,64]')
    assert 'The model cannot be built: assert len(in_channels) == len(in_index), at ' in line


def test_old_keys_of_pretrained_weights(root, capsys):
    line = refused(capsys, 'model.pretrained=open-mmlab://resnet50_v1c')
    assert 'set model.pretrained=None' in line and 'backbone.init_cfg' in line


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_training_that_is_stopped_early_saves_its_last_weights(root, capsys, by_epoch):
    hook = dict(type='EarlyStoppingHook', monitor='mIoU', patience=1, min_delta=100, strict=True)
    cfg = root.parent / 'early.py'
    loop = dict(type='EpochBasedTrainLoop', max_epochs=9, val_interval=1)
    if not by_epoch:
        loop = dict(type='IterBasedTrainLoop', max_iters=9, val_interval=1)
    cfg.write_text(
        f'_base_ = {SEGMENTATION!r}\ncustom_hooks = [{hook!r}]\ntrain_cfg = dict(_delete_=True, **{loop!r})\n'
        f'default_hooks = dict(checkpoint=dict(by_epoch={by_epoch}, interval=9))\n'
    )
    options = [*FAST, 'train_dataloader.batch_size=2', 'val_dataloader.dataset.indices=1']
    options += [
        'train_dataloader.dataset.indices=2',
        'train_dataloader.sampler.type=DefaultSampler',
    ]
    assert train(str(cfg), work_dir='early', device='cpu', cfg_options=options) == 0
    (saved,) = (root.parent / 'early').glob(f'{"epoch" if by_epoch else "iter"}_*.pth')
    seen = capsys.readouterr()
    assert saved.stem[-1] == '2', seen.out
    assert 'finished at iteration 2, stopped early' in seen.out and saved.name in seen.out


def test_devices_that_are_not_there(root, capsys):
    assert '--device meta is not available; available: cpu' in refused(capsys, device='meta')


LINEAR = {'type': 'LinearLR', 'begin': 0, 'by_epoch': False, 'start_factor': 0.1}
STEPS = {'type': 'MultiStepLR', 'begin': 0, 'by_epoch': True, 'milestones': [2, 5]}


@pytest.mark.parametrize(
    ('settings', 'schedulers', 'sentences'),
    [
        ({'iters': 6}, [{**LINEAR, 'end': 6}], []),
        ({'iters': 6}, [{**LINEAR, 'end': 9}], ['LinearLR ends at iteration 9, and the training at 6']),
        ({'iters': 6}, [{**LINEAR, 'begin': 7, 'end': 9}], ['LinearLR begins at iteration 7']),
        ({'iters': 6}, [STEPS], ['MultiStepLR counts epochs and the training iterations']),
        ({'epochs': 6}, [STEPS], []),
        ({'epochs': 3}, [STEPS], ['MultiStepLR has a milestone at epoch 5, and the training ends at 3']),
        ({'iters': 6, 'checkpoint': {'interval': 7}}, [], ['a checkpoint is due every 7 iterations']),
    ],
)  # fmt: skip
def test_schedules_that_a_training_is_too_short_for(tmp_path, settings, schedulers, sentences):
    runner = build(tmp_path, **settings)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.param_schedulers = runner.build_param_scheduler(schedulers)
    found = list(schedule_faults(runner))
    assert len(found) == len(sentences)
    assert all(sentence in text for sentence, text in zip(sentences, found))


@pytest.mark.parametrize(
    ('settings', 'sentence'),
    [
        ({}, 'averages over about 5,000 iterations, and the training has 100'),
        (dict(momentum=0.01), 'Set momentum=0.1.'),
        (dict(momentum=0.05), None),
        (dict(ema_type='ExpMomentumEMA'), None),
    ],
)
def test_averages_over_more_iterations_than_there_are(tmp_path, settings, sentence):
    runner = build(tmp_path, iters=100)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.register_hook(EMAHook(**settings))
    found = list(schedule_faults(runner))
    assert len(found) == bool(sentence) and all(sentence in text for text in found)


def test_documented_lines_for_averages_accumulation_and_early_stopping(root, capsys):
    text = (ROOT / 'docs/training.md').read_text()
    (lines,) = re.findall(r'<!-- test: lines -->\n```python\n(.*?)```', text, flags=re.DOTALL)
    # No validation is better by 100 than the one before.
    lines = lines.replace('patience=5', 'patience=1, min_delta=100.0')
    Path('mine.py').write_text(f'_base_ = [{SEGMENTATION!r}]\n{lines}')
    options = [*FAST, 'train_cfg.max_iters=8', 'train_cfg.val_interval=2']
    options += ['default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=-1']
    assert train('mine.py', work_dir='run', device='cpu', cfg_options=options) == 0
    assert '2 per device x 1 device x 4 accumulation = 8' in capsys.readouterr().out
    assert sorted(file.name for file in Path('run').glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']
    content = torch.load('run/iter_4.pth', weights_only=False)
    name = 'decode_head.conv_seg.weight'
    averaged, raw = content['state_dict'][name], content['ema_state_dict'][f'module.{name}']
    assert not torch.equal(averaged, raw)
    start = torch.load('run/iter_2.pth', weights_only=False)
    # The optimizer has stepped once, after the fourth batch.
    assert torch.equal(start['ema_state_dict'][f'module.{name}'], start['state_dict'][name])
