"""Two processes train the quickstarts, and their first step is the one that a single process takes.

What is compared: the gradients that the optimizer gets for its first step, of every parameter, from complete runs of
`tools/dist_train.sh CONFIG 2` (gloo, CPU) and of `tools/train.py`, on the same four images in the same order.

- Segmentation: two processes with two images each against one process with all four. The loss is a mean over pixels
  and the shards are equal, so the mean over the processes is the mean over the joined batch.
- Detection: mmdet divides its losses by the number of positive samples of a process, so a joined batch weighs images
  differently, by design. Here one process takes the two shards one after the other and accumulates, which is the mean
  of the shards' gradients: exactly what two processes must arrive at.
"""

import json
import os

import pytest
import torch
from tool_runs import DETECTION, FAST, ROOT, SEGMENTATION

CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['swinv2_mm', 'gradient_recorder'], allow_failed_imports=False)
custom_hooks = [dict(type='mmengine.GradientRecorder', path={path!r})]
"""
"""A quickstart whose optimizer is watched."""

IN_ORDER = (
    'randomness.seed=0',
    'train_dataloader.sampler.shuffle=False',
    'train_dataloader.dataset.pipeline.3.type=RandomFlip',
    'train_dataloader.dataset.pipeline.3.prob=0.0',
    'train_dataloader.dataset.pipeline.3.direction=horizontal',
)
"""Options for `--cfg-options`: the same images for every run, none of them flipped."""


def assert_same_step(one, other, tolerance):
    """Every gradient agrees to a tolerance relative to the largest of its tensor."""
    assert one['gradients'].keys() == other['gradients'].keys()
    assert len(one['gradients']) > 100
    for name, gradient in one['gradients'].items():
        scale = other['gradients'][name].abs().max().clamp(min=1e-6)
        error = (gradient - other['gradients'][name]).abs().max() / scale
        assert error <= tolerance, f'{name}: {error:.2e}'
    assert any(gradient.abs().max() > 1e-3 for gradient in one['gradients'].values())


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def first_step(run_tool, tmp_path):
    """Returns a function that runs a tool on a watched config and returns the process and each rank's record."""

    def run(name, command, base, num_iters, *options):
        config = tmp_path / f'{name}.py'
        config.write_text(CONFIG.format(base=base, path=str(tmp_path / f'{name}_{{rank}}.pt')))
        process = run_tool(
            command[0], config, *command[1:], '--work-dir', tmp_path / name, '--max-iters', num_iters,
            '--cfg-options', *FAST, *IN_ORDER, *options,
            env={'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'tools')]), 'PORT': '29617'},
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        records = sorted(tmp_path.glob(f'{name}_*.pt'))
        return process, [torch.load(path, weights_only=True) for path in records]

    return run


TWO = ('tools/dist_train.sh', 2)
ONE = ('tools/train.py',)


def test_a_detector_steps_as_one_process_that_accumulates(first_step, tmp_path):
    process, (first, second) = first_step(
        'pair', TWO, DETECTION, 1, 'train_dataloader.dataset.indices=[0,1,2,3]'
    )
    assert '2 per device x 2 devices x 1 accumulation = 4' in process.stdout
    assert process.stdout.count('Iter(train) [1/1]') == 1  # only the first process logs
    assert 'bbox_mAP' in json.loads((tmp_path / 'pair' / 'metrics.json').read_text())
    _, (single,) = first_step(
        'single', ONE, DETECTION, 2, 'train_dataloader.dataset.indices=[0,2,1,3]',
        'optim_wrapper.accumulative_counts=2',
    )  # fmt: skip
    assert [*first['images'], *second['images']] == single['images']
    assert len(set(single['images'])) == 4
    assert_same_step(first, second, 0)
    assert_same_step(first, single, 1e-4)


@pytest.mark.long
def test_a_segmentor_steps_as_one_process_with_the_joined_batch(first_step):
    options = ['train_dataloader.dataset.indices=[0,1,2,3]']
    options += ['model.decode_head.dropout_ratio=0.0']
    _, (first, second) = first_step('pair', TWO, SEGMENTATION, 1, *options)
    _, (single,) = first_step(
        'single', ONE, SEGMENTATION, 1, *options, 'train_dataloader.batch_size=4'
    )
    assert sorted([*first['images'], *second['images']]) == single['images']
    assert_same_step(first, second, 0)
    assert_same_step(first, single, 1e-4)


def test_a_mistake_is_told_once_and_without_the_launchers_own_trace(run_tool, tmp_path):
    process = run_tool(
        'tools/dist_train.sh', DETECTION, 2, '--work-dir', tmp_path,
        env={'SWINV2_MM_SHAPES': '/nowhere', 'PORT': '29618'},
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.count('The data root /nowhere/') == 1
    assert len(process.stderr.splitlines()) == 1, process.stderr
    assert 'Traceback' not in process.stdout


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_scripts_say_how_they_are_used(run_tool, script):
    process = run_tool(f'tools/{script}')
    assert process.returncode == 2
    assert process.stderr.startswith(f'usage: tools/{script} ')
