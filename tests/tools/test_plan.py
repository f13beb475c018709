"""The command `plan`, compared with real training steps whose memory torch's profiler records."""

import re

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData, PixelData
from random_models import DETECTOR, ROOT, SEGMENTOR
from torch.profiler import ProfilerActivity, profile

from swinv2_mm.apis.models import build_model
from swinv2_mm.apis.plan import Plan, plan_training, train_size
from swinv2_mm.engine.config import load_config

TOOL = ROOT / 'tools/plan.py'
CHECKPOINTING = 'model.backbone.with_cp=True'


def made_up(scope, size, masks):
    """Return a sample with ten random objects, or random labels."""
    height, width = size
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        labels = torch.randint(0, 2, (1, height, width))
        return SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size))
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    corner, extent = torch.rand(10, 2) * 0.6, 0.1 + torch.rand(10, 2) * 0.3
    boxes = torch.cat((corner, corner + extent), 1) * torch.tensor([width, height] * 2)
    objects = InstanceData(bboxes=boxes, labels=torch.zeros(10, dtype=torch.long))
    if masks:
        drawn = torch.zeros(10, height, width, dtype=torch.uint8).numpy()
        for mask, (x, y, right, bottom) in zip(drawn, boxes.int().tolist()):
            mask[y:bottom, x:right] = 1
        objects.masks = BitmapMasks(drawn, height, width)
    sample = DetDataSample(gt_instances=objects, ignored_instances=objects[:0])
    sample.set_metainfo(dict(img_shape=size, ori_shape=size, scale_factor=(1, 1), img_id=0))
    return sample


def measured_peak(cfg, batch, size):
    """Return the most bytes of weights, optimizer states and tensors of the second step of a real training."""
    torch.manual_seed(0)
    model = build_model(cfg, 'the test').train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    masks = bool((cfg.model.get('roi_head') or {}).get('mask_head'))

    def step():
        data = dict(
            inputs=[torch.randint(0, 255, (3, *size), dtype=torch.uint8) for _ in range(batch)],
            data_samples=[made_up(cfg.default_scope, size, masks) for _ in range(batch)],
        )
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        del losses, data
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [x for state in optimizer.state.values() for x in state.values()]
    live = peak = sum(x.nbytes for x in (*model.parameters(), *model.buffers(), *states))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    assert len(events) > 1000
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ('config', 'options'),
    [(DETECTOR, []), (DETECTOR, [CHECKPOINTING]), (SEGMENTOR, []), (SEGMENTOR, [CHECKPOINTING])],
)
def test_a_plan_agrees_with_a_training_step(config, options):
    cfg, size = load_config(config, options), (136, 120)
    found = plan_training(load_config(config, options), config, size=size)
    assert found.size == (160, 128) if 'mask' in config else size
    assert found.total(4) == pytest.approx(measured_peak(cfg, 4, size), rel=0.1)
    rows = found.rows(4)
    assert sum(rows.values()) == found.total(4)
    assert rows['optimizer states'] == pytest.approx(2 * rows['parameters and buffers'], rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize('options', [[], [CHECKPOINTING]])
@pytest.mark.parametrize(
    'config',
    [
        'mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco',
        'swinv2-t-p4-w8-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
        'retinanet_swinv2-t-p4-w8_fpn_1x_coco',
        'fcos_swinv2-t-p4-w8_fpn_gn-head_1x_coco',
        'swinv2-t-p4-w8-in1k-pre_fpn_8xb4-40k_ade20k-512x512',
    ],
)
def test_plans_of_large_models_agree_with_a_training_step(config, options):
    cfg, size = load_config(config, options), (512, 512)
    planned = plan_training(load_config(config, options), config, size=size).total(2)
    measured = measured_peak(cfg, 2, size)
    print(f'{config} {options}: planned {planned / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB')
    assert planned == pytest.approx(measured, rel=0.15)


def test_half_precision_several_gpus_and_other_optimizers():
    def plan(*options, **settings):
        return plan_training(load_config(SEGMENTOR, options), SEGMENTOR, **settings)

    alone = plan()
    assert alone.size == (128, 128)  # of the pipeline
    half = plan(precision='bf16')
    assert half.weights == alone.weights and half.states == alone.states
    assert 0.5 * alone.peaks[0][1] < half.peaks[0][1] < 0.9 * alone.peaks[0][1]
    assert plan(CHECKPOINTING, precision='bf16').total(8) < half.total(8)
    ddp = plan(strategy='ddp', gpus=8)
    assert ddp.total(2) - alone.total(2) == ddp.exchanged == alone.gradients
    fsdp = plan(strategy='fsdp', gpus=8)
    assert 8 * fsdp.states == pytest.approx(alone.states, rel=0.01)
    assert fsdp.total(2) < alone.total(2)
    for momentum, states in ((0, 0), (0.9, 1)):
        cfg = load_config(SEGMENTOR)
        cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1, momentum=momentum)
        found = plan_training(cfg, SEGMENTOR)
        assert found.states == states * alone.gradients


def test_the_largest_batch():
    made = Plan((1, 1), 'SGD', 1, 1, 10**9, 0, 0, 0, 10**9, ((4 * 10**9, 2 * 10**9, 0), (0, 3, 1)))
    assert [made.total(batch) / 1e9 for batch in (1, 2, 3)] == [3, 5, 7]
    # 24 GB less 5 % and 1.5 GB are 21.3 GB.
    assert made.largest_batch(24) == 10 and made.largest_batch(4) == 0


@pytest.mark.parametrize(
    ('scope', 'steps', 'size'),
    [
        ('mmdet', [dict(type='Resize', scale=(1333, 800), keep_ratio=True)], (800, 1333)),
        ('mmdet', [dict(type='Resize', scale=(640, 480))], (480, 640)),
        ('mmdet', [dict(type='RandomCrop', crop_size=(300, 200))], (200, 300)),
        ('mmseg', [dict(type='RandomCrop', crop_size=(300, 200))], (300, 200)),
        ('mmpretrain', [dict(type='RandomResizedCrop', scale=224)], (224, 224)),
        (
            'mmdet',
            [
                dict(
                    type='RandomChoice',
                    transforms=[
                        [dict(type='Resize', scales=[(480, 900), (800, 900)], keep_ratio=True)],
                        [dict(type='Resize', scale=(100, 100))],
                    ],
                )
            ],
            (800, 900),
        ),
        ('mmseg', [dict(type='Load')], None),
        ('mmdet', [dict(type='Resize', scale_factor=2.0)], None),
        (
            'mmdet',
            [dict(type='RandomResize', scale=(128, 100), ratio_range=(0.1, 2.0))],
            (200, 256),
        ),
        (
            'mmseg',
            [
                dict(type='RandomResize', scale=(128, 100), ratio_range=(0.1, 2.0)),
                dict(type='RandomCrop', crop_size=(64, 96)),
                dict(type='Pad', size_divisor=60),
            ],
            (120, 120),
        ),
    ],
)
def test_the_size_of_the_training_images(scope, steps, size):
    cfg = ConfigDict(
        default_scope=scope, train_dataloader=dict(dataset=dict(dataset=dict(pipeline=steps)))
    )
    assert train_size(cfg) == size


def test_the_precision_is_that_of_the_config(run_tool):
    options = ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper']
    done = run_tool('tools/plan.py', DETECTOR, '--size', '64x64', *options)
    assert done.returncode == 0, done.stderr
    assert ', bf16, none, 1 GPU, AdamW' in done.stdout


def test_settings_that_cannot_be(run_tool):
    for option, message in (
        ('optim_wrapper.optimizer.type=Nope', 'cannot be planned'),
        ('train_dataloader.batch_size=abc', 'The batch (abc) and --gpus (1) are whole numbers'),
    ):
        done = run_tool('tools/plan.py', DETECTOR, '--size', '64x64', '--cfg-options', option)
        assert done.returncode == 2 and message in done.stderr, done.stdout + done.stderr
        assert 'Traceback' not in done.stderr


def test_the_command(run_tool):
    done = run_tool(TOOL, DETECTOR, '--batch', '3', '--gpus', '2', '--strategy', 'fsdp')
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert 'images of 128 x 128 pixels (height x width), fp32, fsdp, 2 GPUs, AdamW' in text
    rows = dict(re.findall(r'^(\S.*?)  +(\d+\.\d+)$', text, re.MULTILINE))
    assert 'activations and temporaries, batch of 3' in rows and float(rows['peak']) > 0
    assert re.search(r'^24 GB +\d+$', text, re.MULTILINE)
    for arguments, reason in (
        (('--gpus', '2', '--strategy', 'none'), '--strategy none is for one GPU'),
        (('--batch', '0'), 'numbers from 1'),
        (
            ('--size', '7x7', '--cfg-options', 'model.neck.in_channels=[1,2,3,4]'),
            'Set model.neck.in_channels=',
        ),
    ):
        done = run_tool(TOOL, DETECTOR, *arguments)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        assert reason in done.stdout + done.stderr


def test_the_page_shows_what_the_command_prints(run_tool):
    page = (ROOT / 'docs/training.md').read_text()
    command, *shown = page.split('```\n$ swinv2-mm plan ')[1].split('```')[0].splitlines()
    done = run_tool(TOOL, command)
    text = done.stdout + done.stderr
    assert len(shown) == 17
    for line in shown:
        assert line in text
