"""FSDP2: processes that share the weights train like one, and what they save can be resumed by any number of them."""

import json
import os
import shutil

import pytest
import torch
from process_runs import free_port
from tool_runs import FAST, ROOT, SEGMENTATION

pytestmark = pytest.mark.slow

ENV = {'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests' / 'tools')])}

CONFIG = f"""
_base_ = {SEGMENTATION!r}
custom_imports = dict(imports=['swinv2_mm', 'loss_recorder'], allow_failed_imports=False)
custom_hooks = [dict(type='mmengine.LossRecorder', path='losses.json')]
model_wrapper_cfg = dict(type='swinv2_mm.FullyShardedModel')
arch = dict(_delete_=True, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
# Batch norms would depend on the number of processes, and compiled kernels take seconds to compile.
head = dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=4), channels=16)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch=arch, window_size=4, with_cp=True, attn_backend='fused'),
    decode_head=dict(in_channels=[16, 32, 64, 128], **head))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1), winograd=None)
"""


@pytest.fixture
def train(run_tool, tmp_path):
    """Return a function that trains with a number of processes; it returns the record, checkpoint and metrics."""
    config = tmp_path / 'sharded.py'
    config.write_text(CONFIG)

    def run(name, processes, *options, resumed=None):
        work_dir, record = tmp_path / name, tmp_path / f'{name}.json'
        if resumed:
            work_dir.mkdir()
            shutil.copy(resumed, work_dir)
            options = ('--resume', *options)
        alone = processes == 1  # without torchrun, and so without FSDP2
        process = run_tool(
            *(['tools/train.py', config] if alone else ['tools/dist_train.sh', config, processes]),
            '--work-dir', work_dir, *options, '--cfg-options', *FAST,
            f'train_dataloader.batch_size={6 // processes}', f'custom_hooks.0.path={record}',
            env={**ENV, 'PORT': str(free_port())},
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
        metrics = json.loads((work_dir / 'metrics.json').read_text())
        return json.loads(record.read_text()), checkpoint, metrics

    return run


def assert_same_training(one, other, tolerance):
    """The weights, moments, rates and schedules of two checkpoints agree to an absolute tolerance."""
    assert one.keys() == other.keys()
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for name, value in one['state_dict'].items():
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, other['state_dict'][name], atol=tolerance, rtol=0)
    states, others = one['optimizer']['state'], other['optimizer']['state']
    assert states.keys() == others.keys() and len(states) > 100
    for index, state in states.items():
        assert int(state['step']) == int(others[index]['step']) == 4
        for key in ('exp_avg', 'exp_avg_sq'):
            assert state[key].abs().max() > 0 or key == 'exp_avg_sq'
            torch.testing.assert_close(state[key], others[index][key], atol=tolerance, rtol=0)
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    assert len({group['lr'] for group in one['optimizer']['param_groups']}) > 3  # layer decay
    assert one['param_schedulers'] == other['param_schedulers']
    assert one['meta']['iter'] == other['meta']['iter'] == 4


def test_two_processes_save_what_one_and_three_resume(train, run_tool, tmp_path):
    two, checkpoint, metrics = train('two', 2)
    assert 0.4 * two['all'] < two['own'] < 0.6 * two['all']
    assert two['losses'].keys() == {'1', '2', '3', '4'}
    rest = pytest.approx({key: two['losses'][key] for key in ('3', '4')}, rel=1e-5)
    for name, processes in (('one', 1), ('three', 3)):
        record, other, same_metrics = train(name, processes, resumed=tmp_path / 'two/iter_2.pth')
        assert record['losses'] == rest
        assert record['own'] < 0.4 * record['all'] or processes == 1
        assert_same_training(checkpoint, other, 1e-5)
        assert same_metrics == pytest.approx(metrics, abs=0.1)
    process = run_tool(
        'tools/test.py', tmp_path / 'sharded.py', tmp_path / 'two', '--cfg-options', *FAST,
        '--work-dir', tmp_path / 'test', env=ENV,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    tested = json.loads((tmp_path / 'test' / 'test_metrics.json').read_text())
    assert tested == pytest.approx(metrics, abs=0.1)


def test_a_model_is_divided_before_its_weights_have_memory(start):
    process = start(
        '-m', 'swinv2_mm.engine.processes', '--nproc_per_node=2', f'--master_port={free_port()}',
        ROOT / 'tests' / 'tools' / 'sharded_build.py',
    )  # fmt: skip
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count('same') == 1
