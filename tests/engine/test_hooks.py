"""Hooks that any mmengine config can name."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, DefaultScope

from swinv2_mm.engine.config import complete_config
from swinv2_mm.engine.hooks import InvalidLossHook, MetricsFileHook, plain_metrics

NAN, FINE = {'loss': torch.tensor(float('nan'))}, {'loss': torch.tensor(1.0)}


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
def test_they_build_by_name_in_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        hook = HOOKS.build(dict(type='swinv2_mm.InvalidLossHook', patience=3))
        assert isinstance(hook, InvalidLossHook) and hook.patience == 3
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        wrapper = dict(type='swinv2_mm.AutocastOptimWrapper', optimizer=optimizer)
        assert OPTIM_WRAPPERS.build(wrapper).optimizer is optimizer


def test_the_configs_name_all_that_the_tools_add(detection_cfg):
    named = dict(detection_cfg.default_hooks)
    detection_cfg.default_hooks = dict(logger=dict(type='LoggerHook'), interrupt=None)
    complete_config(detection_cfg)
    added = dict(detection_cfg.default_hooks)
    assert 'interrupt' not in added  # left out on request
    types = {
        name: hook['type'] for name, hook in {**added, 'interrupt': named['interrupt']}.items()
    }
    assert (
        types.items()
        >= {
            name: hook['type'] for name, hook in named.items() if 'swinv2_mm' in hook['type']
        }.items()
    )


@pytest.fixture
def losses(tmp_path):
    """Return a function that tells a hook the losses of one iteration after the other."""

    def tell(hook, outputs):
        runner = SimpleNamespace(
            logger=logging.getLogger('run'), rank=0, epoch=0, work_dir=str(tmp_path), hooks=[hook],
            model=torch.nn.Linear(1, 1),
        )  # fmt: skip
        for iteration, output in enumerate(outputs):
            runner.iter = iteration
            hook.after_train_iter(runner, iteration, None, output)

    return tell


def test_a_loss_that_stays_nan_ends_the_run(caplog, losses, tmp_path):
    with pytest.raises(
        FloatingPointError, match='nan for 10 iterations in a row, up to iteration 11'
    ):
        losses(InvalidLossHook(patience=10), [FINE, *[NAN] * 99])
    report = tmp_path / 'invalid_values.json'
    assert caplog.messages == [f'the loss is nan at iteration 2; report: {report}']
    assert json.loads(report.read_text())['iteration'] == 2  # the first one


def test_a_loss_that_recovers_does_not(losses):
    losses(
        InvalidLossHook(patience=10), [FINE if number % 9 == 8 else NAN for number in range(100)]
    )


def test_only_the_first_process_writes_metrics(tmp_path):
    runner = SimpleNamespace(rank=1, work_dir=str(tmp_path), logger=logging.getLogger('run'))
    MetricsFileHook().after_val_epoch(runner, {'coco/bbox_mAP': 0.5})
    assert not list(tmp_path.iterdir())
    runner.rank = 0
    MetricsFileHook().after_test_epoch(runner, {'coco/bbox_mAP': 0.5})
    assert json.loads((tmp_path / 'test_metrics.json').read_text()) == {'bbox_mAP': 0.5}


def test_prefixes_go_unless_two_keys_would_become_one():
    assert plain_metrics({'coco/bbox_mAP': 0.5, 'mIoU': 3}) == {'bbox_mAP': 0.5, 'mIoU': 3.0}
    assert plain_metrics({'a/mAP': 0.5, 'b/mAP': 0.25}) == {'a/mAP': 0.5, 'b/mAP': 0.25}


def test_metrics_are_plain_json_whatever_the_values():
    metrics = plain_metrics({'mIoU': np.float32(40.119998931884766), 'mAcc': float('nan')})
    assert metrics == {'mIoU': 40.119999, 'mAcc': None} and json.dumps(metrics)
