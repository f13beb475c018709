"""Curves of runs, resumed runs and runs that were killed; TensorBoard's event files."""

import json
import logging
import math
import sys
from types import SimpleNamespace

import cv2
import pytest
from mmengine.config import Config

from swinv2_mm.engine.curves import (
    SafeHook,
    TensorboardBackend,
    draw_curves,
    read_scalars,
    smoothed,
)


def write(path, lines, end=''):
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines) + end)
    return path


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    first = [dict(loss=step / 10, lr=0.1, step=step) for step in (10, 20, 30)]
    first.insert(2, dict(mAP=0.2, time=1.0, step=2))  # epochs of 10 iterations
    second = [dict(mAP=0.3, step=2), dict(loss=math.nan, lr=0.2, step=30)]
    files = [
        write(tmp_path / 'a.json', first, end='{"loss": 4'),  # killed
        write(tmp_path / 'b.json', second),
    ]
    losses, rates, metrics = read_scalars(files, length=10)
    assert list(losses['loss']) == [10, 30] and math.isnan(losses['loss'][30])
    assert rates == {'lr': {10: 0.1, 30: 0.2}}
    assert metrics == {'mAP': {20: 0.3}}
    # Logged by epoch in a run without epochs: the last iteration that was logged.
    assert read_scalars(files[:1], length=0)[2] == {'mAP': {20: 0.2}}
    assert draw_curves(losses, rates, metrics, 'iteration').startswith(b'\x89PNG')


def test_smoothing_is_unbiased_and_passes_over_nan():
    assert smoothed([2.0, 2.0, math.nan, 2.0]) == pytest.approx([2.0] * 4)
    assert smoothed([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])


def test_an_error_in_a_hook_is_one_warning(caplog):
    hook = SafeHook()

    def fail(runner):
        raise RuntimeError('no font')

    runner = SimpleNamespace(rank=0, logger=logging.getLogger('run'))
    hook.attempt(runner, fail)
    hook.attempt(runner, fail)
    assert [record.getMessage() for record in caplog.records] == [
        'SafeHook: no picture: RuntimeError: no font'
    ]
    hook.attempt(SimpleNamespace(rank=1), fail)


def test_without_tensorboard_a_run_goes_on(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith('torch.utils.tensorboard')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    backend = TensorboardBackend(str(tmp_path / 'vis'))
    backend.add_scalars({'loss': 0.5}, step=3)
    backend.add_config(Config({'a': 1}))
    backend.close()
    assert not list(tmp_path.rglob('events*'))


def test_event_files_hold_the_steps(tmp_path):
    event_accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator'
    )
    backend = TensorboardBackend(str(tmp_path))
    backend.add_scalars({'loss': 0.5}, step=7)
    backend.add_image('predictions', cv2.imread(str(sample(tmp_path))), step=7)
    backend.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars('loss')] == [(7, 0.5)]
    assert [event.step for event in events.Images('predictions')] == [7]


def sample(folder):
    path = folder / 'x.png'
    path.write_bytes(draw_curves({'loss': {1: 2.0}}, {}, {}, 'iteration'))
    return path
