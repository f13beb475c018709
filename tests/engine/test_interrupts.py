"""Ctrl-C waits for the end of the iteration, a second one does not."""

import os
import signal
import time
from contextlib import contextmanager

import pytest

from swinv2_mm.engine import interrupts
from swinv2_mm.engine.interrupts import InterruptHook


@contextmanager
def listening():
    """A hook between the beginning and the end of a training."""
    before = signal.getsignal(signal.SIGINT)
    hook = InterruptHook()
    hook.before_train(None)
    try:
        yield hook
    finally:
        hook.after_train(None)
    assert signal.getsignal(signal.SIGINT) is before


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_nothing_happens_without_it():
    with listening() as hook:
        hook.after_train_iter(None, 0)


def test_the_iteration_is_finished(capfd):
    with listening() as hook:
        press()
        press()  # passed on by the terminal and by the launcher
        assert hook.requested
        assert capfd.readouterr().out.count('stopping after this iteration') == 1
        with pytest.raises(KeyboardInterrupt):
            hook.after_train_iter(None, 0, data_batch=None, outputs={})
        with pytest.raises(KeyboardInterrupt):
            hook.after_val_iter(None, 0)


def test_pressed_again_it_stops_at_once(monkeypatch):
    monkeypatch.setattr(interrupts, '_SAME_PRESS', 0.05)
    with listening():
        press()
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            press()
            time.sleep(1)
