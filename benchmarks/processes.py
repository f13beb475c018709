"""Start processes, talk to them, and end them."""

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
_GRACE = 5.0  # seconds to end in
_LONGEST = 1e6  # seconds of a wait, which must be finite


class ContestantError(Exception):
    """A process cannot do what it was asked; the message is one line."""


class Worker:
    """A process that runs `worker.serve`.

    Args:
        env: Its environment; see `environment`.
        log: File that gets what libraries print.
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
                    start_new_session=True,  # Ctrl-C is for the main process, which ends the others
                )
        finally:
            for end in ends:
                os.close(end)
        self._requests = Connection(to_worker[1], readable=False)
        self._answers = Connection(to_main[0], writable=False)

    @property
    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return not self._answers.closed and self.process.poll() is None

    def tell(self, what: str, **arguments: Any) -> None:
        """Send a request: a method of `worker.Bench` and its arguments."""
        with contextlib.suppress(OSError):  # `answer` says how it ended
            self._requests.send({'do': what, 'with': arguments})

    def answer(self, seconds: float) -> Any:
        """Wait for the answer to a request.

        Raises:
            ContestantError: It failed, died, or took too long; in the last two cases the process is gone.
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
        """`tell` and `answer`."""
        self.tell(what, **arguments)
        return self.answer(seconds)

    def close(self) -> None:
        """End the process and what it started."""
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
    """This process in place of one of its own, for contestants that share it."""

    is_alive = True

    def __init__(self, threads: int) -> None:
        self.bench = Bench(threads, is_alone=False)

    def ask(self, what: str, seconds: float, **arguments: Any) -> Any:
        """See `Worker.ask`; `seconds` is not watched."""
        try:
            return getattr(self.bench, what)(**arguments)
        except Exception as error:  # whatever a library raises
            raise ContestantError(one_line(error)) from None

    def close(self) -> None:
        """Forget all tasks."""
        self.bench.release()


def environment(threads: int, device: str, folder: str = '') -> dict[str, str]:
    """Environment of a process: a CPU hides the GPU, `folder` is where a library is found before all others."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    paths = [folder, str(ROOT), os.environ.get('PYTHONPATH')]
    env['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    env['OMP_NUM_THREADS'] = env['MKL_NUM_THREADS'] = str(threads)
    if 'OMP_WAIT_POLICY' not in env:
        env.setdefault('GOMP_SPINCOUNT', '20000')  # as tools/train.py: waiting threads spin briefly
    env['TORCHINDUCTOR_COMPILE_THREADS'] = '1' if device == 'cpu' else '2'
    if device == 'cpu':
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


class Pool:
    """The processes of all contestants, or this one for all (`is_local`); a context that ends them.

    Attributes:
        timeout: Longest time of an answer, in seconds.
        folder: For temporary files.
        deadline: When answers are due, by `time.monotonic`.
        versions: Of the libraries of peers.
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
        """Longest time of an answer from now on."""
        return max(1.0, min(self.timeout, self.deadline - time.monotonic()))

    def worker(self, contestant: Contestant, case: Case) -> Worker | Local:
        """The process of a contestant; started if there is none.

        Raises:
            ContestantError: The library is absent or cannot be imported.
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
        """Let all processes forget what they hold; end those that compiled, which serve one case each."""
        if self._local is not None:
            self._local.close()
        for key, worker in list(self._workers.items()):
            if ' ' in key:
                worker.close()
            elif worker.is_alive:
                with contextlib.suppress(ContestantError):
                    worker.ask('release', self.seconds)

    def close(self) -> None:
        """End all processes; no other is started."""
        self._is_closed = True
        for worker in list(self._workers.values()):
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._folder.cleanup()


def process_name(contestant: Contestant, case: Case) -> str:
    """Who compiles has a process for each case, so that all compile side by side; the products share one."""
    if contestant.name in PRODUCTS:
        return 'products'
    return f'{contestant.name} {case}' if contestant.compiles else contestant.name
