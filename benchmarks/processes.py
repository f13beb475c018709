"""Worker processes and their pool."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.contestants import PRODUCTS, Contestant, peer_folder
from benchmarks.worker import Bench, one_line

ROOT = Path(__file__).resolve().parents[1]
_GRACE = 5.0  # seconds to exit
_LONGEST = 1e6  # upper limit of a wait in seconds


class ContestantError(Exception):
    """A request to a process failed; the message is one line."""


class Worker:
    """A process that runs `worker.serve`.

    Args:
        env: Environment of the process; see `environment`.
        log: File for the output of libraries.
    """

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        to_worker, to_main = os.pipe(), os.pipe()
        ends = (to_worker[0], to_main[1])
        try:
            with log.open('ab') as file:
                self.process = subprocess.Popen(
                    [sys.executable, '-m', 'benchmarks.worker', *map(str, ends)],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=ends,
                    start_new_session=True,  # Ctrl-C goes to the main process only, which ends the others
                )
        finally:
            for end in ends:
                os.close(end)
        self._requests = Connection(to_worker[1], readable=False)
        self._answers = Connection(to_main[0], writable=False)

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return not self._answers.closed and self.process.poll() is None

    def tell(self, what: str, **arguments: Any) -> None:
        """Send a request: a method of `worker.Bench` and its arguments."""
        with contextlib.suppress(OSError):  # `answer` reports the exit code
            self._requests.send({'do': what, 'with': arguments})

    def answer(self, seconds: float) -> Any:
        """Wait for the result of a request.

        Raises:
            ContestantError: The request failed, or the process died or timed out and is closed.
        """
        try:
            if not self._answers.poll(min(seconds, _LONGEST)):
                self.close()
                raise ContestantError(f'cut off after {seconds:.0f} s')
            answer: Mapping[str, Any] = self._answers.recv()
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
            self.close()
            raise ContestantError(self._how_it_ended()) from error
        if 'error' in answer:
            raise ContestantError(answer['error'])
        return answer['value']

    def ask(self, what: str, seconds: float, **arguments: Any) -> Any:
        """Send a request and return its result; see `tell` and `answer`."""
        self.tell(what, **arguments)
        return self.answer(seconds)

    def close(self) -> None:
        """End the process and its child processes."""
        if self._answers.closed:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE)
        self._requests.close()
        self._answers.close()

    def _how_it_ended(self) -> str:
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return 'the process was ended by signal 9: most likely the machine ran out of memory'
        lines = [line for line in self.log.read_text(errors='replace').splitlines() if line.strip()]
        last = lines[-1].strip()[:300] if lines else 'it printed nothing'
        ended = f'signal {-code}' if code < 0 else f'exit code {code}'
        return f'the process ended with {ended}: {last}'


class Local:
    """Requests in this process, for contestants that share it."""

    is_alive = True

    def __init__(self, threads: int) -> None:
        self.bench = Bench(threads, is_alone=False)

    def ask(self, what: str, seconds: float, **arguments: Any) -> Any:
        """Run a request; see `Worker.ask`. `seconds` is ignored."""
        try:
            return getattr(self.bench, what)(**arguments)
        except Exception as error:  # libraries can raise any error
            raise ContestantError(one_line(error)) from None

    def close(self) -> None:
        """Release all tasks."""
        self.bench.release()


def environment(threads: int, device: str, folder: str = '') -> dict[str, str]:
    """Return the environment of a process; `'cpu'` hides GPUs, `folder` is added at the front of the path."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    paths = [folder, str(ROOT), os.environ.get('PYTHONPATH')]
    env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    env['OMP_NUM_THREADS'] = env['MKL_NUM_THREADS'] = str(threads)
    if 'OMP_WAIT_POLICY' not in env:
        env.setdefault('GOMP_SPINCOUNT', '20000')  # as tools/train.py: threads spin briefly
    env['TORCHINDUCTOR_COMPILE_THREADS'] = '1' if device == 'cpu' else '2'
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


class Pool:
    """Context manager of the processes of all contestants, or of this process (`is_local`).

    Attributes:
        timeout: Maximum time of a request, in seconds.
        folder: Folder for temporary files.
        deadline: Time limit of all requests (`time.monotonic`).
        versions: Versions of the libraries of peers.
    """

    def __init__(
        self, threads: int, device: str, timeout: float = 1800.0, is_local: bool = False
    ) -> None:
        self.threads, self.device, self.timeout = threads, device, timeout
        self.deadline = math.inf
        self.versions: dict[str, str] = {}
        self._local = Local(threads) if is_local else None
        self._is_closed = False
        self._folder = tempfile.TemporaryDirectory(prefix='swinv2_mm_benchmark_')
        self.folder = Path(self._folder.name)
        self._workers: dict[str, Worker] = {}

    @property
    def seconds(self) -> float:
        """Return the remaining time of a request, in seconds."""
        return max(1.0, min(self.timeout, self.deadline - time.monotonic()))

    def worker(self, contestant: Contestant, case: Case) -> Worker | Local:
        """Return the process of a contestant; start it if needed.

        Raises:
            ContestantError: The library is not installed or cannot be imported.
        """
        if self._local is not None:
            return self._local
        if self._is_closed:
            raise ContestantError('ended')
        key = process_name(contestant, case)
        worker = self._workers.get(key)
        if worker is None or not worker.is_alive:
            library = contestant.library
            folder = peer_folder(library) if library else ''
            log = self.folder / f'{key.replace(" ", "_")}.log'
            worker = Worker(environment(self.threads, self.device, folder or ''), log)
            self._workers[key] = worker
            if library:
                self.versions[library] = worker.ask('hello', self.seconds, library=library)
        return worker

    def release(self) -> None:
        """Release the tasks of all processes; end processes that compiled, since they run one case each."""
        if self._local is not None:
            self._local.close()
        for key, worker in list(self._workers.items()):
            if ' ' in key:
                worker.close()
            elif worker.is_alive:
                with contextlib.suppress(ContestantError):
                    worker.ask('release', self.seconds)

    def close(self) -> None:
        """End all processes and prevent new ones."""
        self._is_closed = True
        for worker in list(self._workers.values()):
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._folder.cleanup()


def process_name(contestant: Contestant, case: Case) -> str:
    """Return the key of a process: one per contestant, one per case if it compiles, one for all products."""
    if contestant.name in PRODUCTS:
        return 'products'
    return f'{contestant.name} {case}' if contestant.compiles else contestant.name
