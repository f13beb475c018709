"""A signal waits for the end of the iteration, a second one does not; see also tests/tools/test_crash.py."""

import os
import signal
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from swinv2_mm.engine import interrupts
from swinv2_mm.engine.interrupts import InterruptHook

RUNNER = SimpleNamespace(
    train_loop=None, optim_wrapper=None, world_size=1, epoch=0, iter=0, hooks=[]
)


@contextmanager
def listening():
    """A hook between the beginning and the end of a training."""
    before = signal.getsignal(signal.SIGINT)
    hook = InterruptHook()
    hook.before_train(RUNNER)
    try:
        yield hook
    finally:
        hook.after_train(RUNNER)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_happens_without_it():
    with listening() as hook:
        hook.after_train_iter(RUNNER, 0)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_the_iteration_is_finished(capfd, number, code):
    with listening() as hook:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # passed on by the terminal and by the launcher
        assert hook.requested == code
        assert capfd.readouterr().out.count('stopping after this iteration') == 1
        with pytest.raises(KeyboardInterrupt) as caught:
            hook.after_train_iter(RUNNER, 0, data_batch=None, outputs={})
        assert isinstance(caught.value, SystemExit) and caught.value.code == code


def test_a_second_signal_stops_at_once(monkeypatch):
    monkeypatch.setattr(interrupts, '_SAME_PRESS', 0.05)
    with listening():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
