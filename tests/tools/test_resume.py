"""Resumed trainings equal uninterrupted ones to the last digit, and follow a config that has changed."""

import itertools

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from resume_runs import Run, assert_continues, assert_same_schedule, tiny
from tool_runs import DETECTION, SEGMENTATION, log_of
from torch.utils.data import BatchSampler

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.resume import is_sound
from swinv2_mm.engine.schedules import Pace, PlacedBatches
from swinv2_mm.ops.winograd import WinogradConv2d

WORKERS = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}


@pytest.fixture(scope='module')
def shapes(environment):
    """The generated set of six images, which the configs read."""
    patch = pytest.MonkeyPatch()
    patch.setenv('SWINV2_MM_SHAPES', environment['SWINV2_MM_SHAPES'])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


def by_epoch(max_epochs=2, **changes):
    """A config with three batches per epoch, the last of them incomplete."""
    cfg = tiny(SEGMENTATION)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.dataset.indices = [0, 1, 2, 3, 4]
    cfg.log_processor = dict(by_epoch=True, window_size=3)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=4),
        dict(type='MultiStepLR', by_epoch=True, milestones=[1]),
    ]
    cfg.custom_hooks = [
        dict(type='EMAHook'),
        dict(type='EarlyStoppingHook', monitor='mIoU', patience=9, min_delta=100),
        dict(type='CheckpointHook', by_epoch=True, interval=1, filename_tmpl='epoch_{}.pth'),
    ]
    cfg.optim_wrapper.update(type='swinv2_mm.AutocastOptimWrapper', accumulative_counts=4)
    cfg.merge_from_dict(changes)
    return cfg


def by_iteration(max_iters=5, **changes):
    """A config with a validation in the middle, and a seed that is drawn."""
    cfg = tiny(SEGMENTATION)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2)
    cfg.randomness = dict(seed=None)
    cfg.param_scheduler = [dict(type='PolyLR', by_epoch=False)]
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture(scope='module')
def epochs(shapes, tmp_path_factory):
    return Run(by_epoch(), tmp_path_factory.mktemp('epochs'))


@pytest.fixture(scope='module')
def iterations(shapes, tmp_path_factory):
    return Run(by_iteration(), tmp_path_factory.mktemp('iterations'))


@pytest.mark.parametrize(
    'name, after, changes',
    [
        ('iter_2', 2, WORKERS),  # in an epoch and in a group of accumulated gradients
        ('epoch_1', 3, {}),  # before a validation
        ('iter_4', 4, {}),
        ('iter_6', 6, {}),  # before the end of the epoch has been handled
        ('epoch_2', 6, {}),  # before the last validation
    ],
)
def test_epochs_continue_to_the_last_digit(epochs, tmp_path, name, after, changes):
    rest = Run(by_epoch(**changes), tmp_path, epochs.folder / f'{name}.pth')
    assert_continues(epochs, rest, after)


@pytest.mark.parametrize('name, after, changes', [('iter_2', 2, {}), ('iter_4', 4, WORKERS)])
def test_iterations_continue_to_the_last_digit(iterations, tmp_path, name, after, changes):
    rest = Run(by_iteration(**changes), tmp_path, iterations.folder / f'{name}.pth')
    assert_continues(iterations, rest, after)
    if not changes:
        assert (iterations.reads, rest.reads) == (10, 6)
        assert WinogradConv2d in {type(module) for module in rest.runner.model.modules()}


def test_a_detector_continues_over_wrapped_sets_without_an_infinite_sampler(shapes, tmp_path):
    cfg = tiny(DETECTION)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=5, val_interval=5)
    cfg.log_processor = dict(by_epoch=False)
    cfg.param_scheduler = []
    plain = cfg.train_dataloader.dataset
    plain.indices = [0, 1, 2]
    steps = plain.pipeline
    plain.pipeline = steps[:2]
    sets = dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=plain)
    sets = dict(type='RepeatDataset', times=1, dataset=sets)
    pasted = [steps[2], dict(type='CopyPaste'), *steps[3:]]
    cfg.train_dataloader.dataset = dict(type='MultiImageMixDataset', dataset=sets, pipeline=pasted)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
    whole = Run(cfg, tmp_path / 'whole')
    rest = Run(cfg, tmp_path / 'rest', tmp_path / 'whole' / 'iter_4.pth')
    assert len({tuple(step[1]) for step in whole.steps.values()}) > 1
    assert_continues(whole, rest, 4)


NEW = {
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2),
        dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
    ],
    'optim_wrapper.optimizer.lr': 1e-3,
    'optim_wrapper.optimizer.weight_decay': 0.3,
}


@pytest.mark.parametrize(
    'changes, places',
    [
        (NEW, {'epoch_1': 3, 'iter_4': 4}),
        ({**NEW, 'train_dataloader.batch_size': 4}, {'epoch_2': 4, 'iter_2': 1}),
    ],
)
def test_a_changed_schedule_is_followed_as_if_it_had_always_been_so(
    epochs, tmp_path, changes, places
):
    cfg = by_epoch(3, **{'train_cfg.val_interval': 9, **changes})
    whole = Run(cfg, tmp_path / 'whole')
    for name, after in places.items():
        rest = Run(cfg, tmp_path / name, epochs.folder / f'{name}.pth')
        assert_same_schedule(whole, rest, after)


def test_iterations_are_counted_in_images(iterations, tmp_path):
    changes = {'train_dataloader.batch_size': 4, 'train_cfg.val_interval': 9}
    changes['param_scheduler'] = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=3)]
    rest = Run(by_iteration(**changes), tmp_path, iterations.folder / 'iter_4.pth')
    files = [file for step in iterations.steps.values() for file in step[1]]
    assert list(rest.steps) == [3, 4, 5]
    assert rest.steps[3][1][:2] == files[8:]
    said = log_of(tmp_path)
    assert 'from iteration 4 with 2 images per process x 1 x 1 accumulation' in said
    assert 'continuing at iteration 2.' in said
    assert 'they follow the config, with a learning rate of 0.0005 at iteration 2' in said
    assert 'ends its half cosine after T_max=3 of 5 steps' in said


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'train_dataloader.batch_size': 1},
            'train_cfg.max_iters=N, or a batch size with 2 images',
        ),
        ({'optim_wrapper.optimizer.type': 'Adam'}, 'is of AdamW .* config defines Adam with'),
        (
            {'param_scheduler': [dict(type='ReduceOnPlateauLR', monitor='mIoU')]},
            'ReduceOnPlateau cannot be recomputed',
        ),
    ],
)
def test_what_cannot_be_followed_stops_the_run(iterations, tmp_path, changes, message):
    with pytest.raises(SetupError, match=message):
        Run(by_iteration(**changes), tmp_path, iterations.folder / 'iter_4.pth')


@pytest.mark.parametrize(
    'changes',
    [
        dict(pace=[1, 3, 0, 1, 1]),
        dict(pace=[1, 3, True, 1, 1]),
        dict(pace=[1, 3]),
        dict(gradients=[1]),
        dict(gradients={'a': 1}),
        dict(sampler_seed='0'),
        dict(counters=[['InvalidLossHook', 3]]),
    ],
)
def test_forged_states_are_not_used(epochs, changes):
    state = load(epochs.folder / 'iter_4.pth')['resume_state']
    assert is_sound(state)
    assert not is_sound({**state, **changes})
    assert not is_sound([state])


def load(path):
    return torch.load(path, weights_only=False)


SAME = dict(lr=0.01, momentum=0.9, weight_decay=0.0)


@pytest.mark.long
def test_two_processes_continue_the_training_of_one(shapes, run_tool, tmp_path):
    cfg = by_iteration(4, **{'train_dataloader.batch_size': 4, 'train_cfg.val_interval': 9})
    cfg.optim_wrapper.optimizer = dict(type='SGD', **SAME)
    cfg.model.backbone.drop_path_rate = cfg.model.decode_head.dropout_ratio = 0.0
    cfg.model.decode_head.norm_cfg = dict(type='GN', num_groups=4)
    cfg.default_hooks.checkpoint.interval = 1
    one = Run(cfg, tmp_path / 'one')
    cfg.dump(tmp_path / 'config.py')
    process = run_tool(
        'tools/dist_train.sh', tmp_path / 'config.py', 2, '--work-dir', tmp_path / 'two',
        '--resume', tmp_path / 'one' / 'iter_1.pth', '--cfg-options', 'train_dataloader.batch_size=2',
        'train_cfg.max_iters=3', 'param_scheduler.0.end=4', env={'PORT': '29641'},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    end = Run(cfg, tmp_path / 'end', tmp_path / 'two' / 'iter_3.pth')
    assert_same_schedule(one, end, 3)
    assert end.steps[4][4]['loss'] == pytest.approx(one.steps[4][4]['loss'], rel=1e-4)
    for name, value in one.state.items():
        torch.testing.assert_close(end.state[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_processes_share_the_samples_of_a_batch_and_their_random_numbers(sampler):
    def batches(rank, world_size, skip):
        inner = sampler(range(12), seed=1)
        if sampler is DefaultSampler:
            inner.num_samples = 12 // world_size
        inner.rank, inner.world_size = rank, world_size
        placed = PlacedBatches(BatchSampler(inner, 4 // world_size, False), rank, world_size, True)
        placed.skip = skip
        return list(itertools.islice(placed, 5 - skip))

    whole = batches(0, 1, 0)
    pairs = zip(batches(0, 2, 0), batches(1, 2, 0))
    assert [sorted(one + other) for one, other in pairs] == [sorted(batch) for batch in whole]
    assert batches(0, 1, 4) == whole[4:]
    assert len({sample.key for batch in whole for sample in batch}) == 20


def test_positions_of_another_pace():
    small, large = Pace(1, 10, 2, 1, 1), Pace(1, 5, 2, 2, 1)
    assert large.position(small, 3, 30) == (3, 15)
    assert large.position(small, 3, 35) == (3, 17)
    assert large.position(small, 3, 40) == (3, 20)  # the end of the epoch is still to come
    assert small.position(small, 3, 40) == (3, 40)
    assert large.position(Pace(0, 10, 2, 1, 1), 0, 30) == (3, 15)
    assert Pace(0, 10, 2, 1, 1).position(small, 3, 35) == (0, 35)
    assert Pace(0, 3, 8, 1, 1).position(small, 3, 35) == (0, 8)
