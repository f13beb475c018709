"""Starting the processes of contestants, talking to them, and ending them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import swinv2_mm
from swinv2_mm.benchmarks.contestants import Contestant, peer_folder, why_absent

_GRACE = 5.0


class ContestantError(Exception):
    """A contestant cannot do what it was asked; the message is one line."""


class Worker:
    """The process of a contestant.

    Args:
        contestant: Who.
        threads: Threads it computes with.
        device: `'cpu'` hides the GPU from it.
        timeout: Longest time an answer may take, in seconds.
        log: File that gets what libraries print.

    Attributes:
        hello: What the process said about itself.

    Raises:
        ContestantError: The library is absent or cannot be imported.
    """

    def __init__(
        self, contestant: Contestant, threads: int, device: str, timeout: float, log: Path
    ) -> None:
        self.contestant, self.timeout, self.log = contestant, timeout, log
        library = contestant.library
        absent = library and why_absent(library)
        if absent:
            raise ContestantError(absent)
        to_worker, to_main = os.pipe(), os.pipe()
        ends = (to_worker[0], to_main[1])
        try:
            with log.open('ab') as file:
                self.process = subprocess.Popen(
                    [sys.executable, '-m', 'swinv2_mm.benchmarks.worker', *map(str, ends)],
                    env=environment(library, threads, device),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=ends,
                    start_new_session=True,  # Ctrl-C is for the main process, which then ends all others
                )
        finally:
            for end in ends:
                os.close(end)
        self._requests = Connection(to_worker[1], readable=False)
        self._answers = Connection(to_main[0], writable=False)
        try:
            self.hello: dict[str, Any] = self.ask('hello', library=library)
        except BaseException:
            self.close(kill=True)
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return not self._answers.closed and self.process.poll() is None

    def ask(self, what: str, **arguments: Any) -> Any:
        """Lets the process do something and waits for the answer.

        Args:
            what: A method of `worker.Bench`.
            **arguments: Its arguments.

        Raises:
            ContestantError: It failed, died, or took too long; in the last two cases the process is gone.
        """
        try:
            self._requests.send({'do': what, 'with': arguments})
            if not self._answers.poll(self.timeout):
                self.close(kill=True)
                raise ContestantError(f'no answer within {self.timeout:.0f} s; ended')
            answer: Mapping[str, Any] = self._answers.recv()
        except (EOFError, OSError) as error:
            self.close(kill=True)
            raise ContestantError(self._how_it_ended()) from error
        if 'error' in answer:
            raise ContestantError(answer['error'])
        return answer['value']

    def close(self, kill: bool = False) -> None:
        """Ends the process and what it started."""
        self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if kill else _GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._answers.close()

    def _how_it_ended(self) -> str:
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return 'the process was ended by signal 9: most likely the machine ran out of memory'
        lines = [line for line in self.log.read_text(errors='replace').splitlines() if line.strip()]
        last = lines[-1].strip()[:300] if lines else 'it said nothing'
        ended = f'signal {-code}' if code < 0 else f'exit code {code}'
        return f'the process ended with {ended}: {last}'


def environment(library: str | None, threads: int, device: str) -> dict[str, str]:
    """Environment of a contestant's process.

    Args:
        library: What it imports, maybe from a folder of its own.
        threads: Threads it computes with.
        device: `'cpu'` hides the GPU.
    """
    env = dict(os.environ)
    package = str(Path(swinv2_mm.__file__).resolve().parents[1])
    folder = peer_folder(library) if library else ''
    env['PYTHONPATH'] = os.pathsep.join(
        filter(None, [folder, os.environ.get('PYTHONPATH'), package])
    )
    env['OMP_NUM_THREADS'] = env['MKL_NUM_THREADS'] = str(threads)
    if 'OMP_WAIT_POLICY' not in env:
        env.setdefault(
            'GOMP_SPINCOUNT', '20000'
        )  # as tools/train.py: who waits must not spin for long
    env['TORCHINDUCTOR_COMPILE_THREADS'] = '1' if device == 'cpu' else '2'
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


class Pool:
    """The processes of all contestants; a context that ends them.

    Args:
        threads: Threads each computes with.
        device: `'cpu'` or `'cuda'`.
        timeout: Longest time an answer may take, in seconds.
    """

    def __init__(self, threads: int, device: str, timeout: float = 1800.0) -> None:
        self.threads, self.device, self.timeout = threads, device, timeout
        self.versions: dict[str, str] = {}
        self.can_reset_peak = True
        self._folder = tempfile.TemporaryDirectory(prefix='swinv2_mm_benchmark_')
        self.folder = Path(self._folder.name)
        self._workers: dict[str, Worker] = {}

    def worker(self, contestant: Contestant) -> Worker:
        """The process of a contestant; started if there is none.

        Raises:
            ContestantError: It cannot be started.
        """
        worker = self._workers.get(contestant.name)
        if worker is None or not worker.is_alive:
            log = self.folder / f'{contestant.name.replace(":", "_")}.log'
            worker = Worker(contestant, self.threads, self.device, self.timeout, log)
            self._workers[contestant.name] = worker
            self.can_reset_peak = worker.hello['can_reset_peak']
            if contestant.library:
                self.versions[contestant.library] = worker.hello['version']
        return worker

    def running(self, contestant: Contestant) -> Worker | None:
        """The process of a contestant, if it runs."""
        worker = self._workers.get(contestant.name)
        return worker if worker is not None and worker.is_alive else None

    def release(self) -> None:
        """Lets all processes forget what they hold; ends them where the peak of a process cannot be reset."""
        for worker in list(self._workers.values()):
            if not worker.is_alive:
                continue
            if not self.can_reset_peak and self.device == 'cpu':
                worker.close()
                continue
            try:
                worker.ask('release')
            except ContestantError:
                worker.close(kill=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers.values():
            worker.close(kill=kind is not None)
        self._folder.cleanup()
