"""Distributed runs: a process that was stopped or lost ends the run with a reason."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import distributed

from swinv2_mm.engine.console import fail
from swinv2_mm.registry import HOOKS

_DONE = 1 << 40
"""Added to the beats of a process that has finished."""


@HOOKS.register_module()
class HeartbeatHook(Hook):
    """End this process with exit code 1 if the process of the next rank does not respond.

    Other processes wait for one that is stopped or unreachable until the timeout of the process group, by default 30
    minutes. Here a thread of each process counts up a number in the store of the group and looks at that of the next
    rank. A process that is slow still counts, so that the timeout can be short.

    Args:
        timeout: Seconds without response after which a process counts as lost.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self._begun, self._ended = threading.Event(), threading.Event()

    def before_run(self, runner: Runner) -> None:
        """Start the thread of a distributed run, and wait for its first beat."""
        port = os.environ.get('MASTER_PORT')
        if runner.world_size > 1 and port and 'MASTER_ADDR' in os.environ:
            self._ended.clear()
            arguments = (os.environ['MASTER_ADDR'], int(port), runner.rank, runner.world_size)
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()
            self._begun.wait(self.timeout)

    def after_run(self, runner: Runner) -> None:
        """Stop the thread."""
        self._ended.set()

    def _watch(self, address: str, port: int, rank: int, world_size: int) -> None:
        """Beat, and count how often the next rank did not."""
        following = (rank + 1) % world_size
        interval = min(2.0, self.timeout / 5)
        seen = missed = 0
        store, ended = None, False
        while True:
            try:
                # A connection of its own: a process may wait in the group's for long.
                store = store or distributed.TCPStore(
                    address, port, is_master=False, timeout=timedelta(seconds=self.timeout / 2)
                )
                store.add(f'swinv2_mm/beat/{rank}', _DONE if ended else 1)
                beats = store.add(f'swinv2_mm/beat/{following}', 0)
                lost = f'process {following} does not respond: it was stopped or killed, or its machine is lost'
            except RuntimeError as error:
                store, beats = None, seen
                lost = f'the connection to the first process at {address}:{port} is lost ({str(error).splitlines()[0]})'
            self._begun.set()
            if ended or beats >= _DONE:
                return
            # Turns are counted, not time: a job that is suspended as a whole has lost nobody.
            missed = 0 if beats != seen else missed + 1
            seen = beats
            if seen and missed * interval >= self.timeout:
                fail(f'After {self.timeout:g} s, {lost}. This run ends.', rank)
                os._exit(1)
            ended = self._ended.wait(interval)
