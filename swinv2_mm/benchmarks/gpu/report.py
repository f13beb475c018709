"""Runs the parts of the report one after the other, each within its share of the time."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from swinv2_mm.benchmarks.gpu.part import PARTS
from swinv2_mm.benchmarks.gpu.tables import render
from swinv2_mm.benchmarks.report import EXIT_OK, EXIT_SETUP, say
from swinv2_mm.benchmarks.results import read_results, write_results

# Parts that compile what they measure, while those before them run.
_EARLY = ('backbones',)
_MOST_MINUTES = 1440
_SECONDS_TO_END = 5  # for a part that is told to stop


class _Interrupted(KeyboardInterrupt):
    """A signal asks the report to end.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run_report(args: argparse.Namespace) -> int:
    """Run the parts that the command line asks for; returns the exit code of the tool.

    Args:
        args: `parts`, `minutes`, `out`, `device`, `quick`.
    """
    args.out = args.out.resolve()  # parts work in other folders
    why_not = _why_not(args.device)
    if not 0 < args.minutes <= _MOST_MINUTES:
        why_not = f'--minutes {args.minutes:g}: expected more than 0, and at most {_MOST_MINUTES}'
    if args.device.startswith('cpu') and not args.quick:
        why_not = f'--device {args.device} only tests the report itself: add --quick'
    if why_not is None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            log = open(args.out / 'log.txt', 'w', encoding='utf-8')  # noqa: SIM115
        except OSError as error:
            why_not = f'cannot write into {args.out}: {error.strerror}'
    if why_not is not None:
        say(why_not)
        return EXIT_SETUP
    parts = [part for part in PARTS if part in args.parts]
    started: dict[str, _Part] = {}
    code = EXIT_OK
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        _run_parts(parts, args, started, log)
    except _Interrupted as error:
        code = 128 + error.number
        say(f'interrupted: what was measured so far is in {args.out}')
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for part in started.values():
            part.end()
        log.close()
    text = _write_tables(args.out)
    print(text)
    return code or (EXIT_OK if all(_is_complete(args.out / f'{p}.json') for p in parts) else 1)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise _Interrupted(number)


def _run_parts(
    parts: list[str], args: argparse.Namespace, started: dict[str, _Part], log: IO[str]
) -> None:
    """Run parts one after the other.

    Args:
        parts: Their names.
        args: See `run_report`.
        started: Gets each part when it starts.
        log: What parts print.
    """
    end = time.monotonic() + 60 * args.minutes
    total = sum(PARTS[part] for part in parts)
    for number, part in enumerate(parts):
        if part in _EARLY and number:
            share = sum(PARTS[name] for name in parts[: number + 1]) / total
            started[part] = _Part(part, args, 60 * args.minutes * share, log, early=True)
    for number, part in enumerate(parts):
        shares = [PARTS[name] for name in parts[number:]]
        seconds = max(1.0, (end - time.monotonic()) * shares[0] / sum(shares))
        say(f'{part}: at most {seconds:.0f} s')
        begin = time.monotonic()
        if part not in started:
            started[part] = _Part(part, args, seconds, log)
        how = started[part].finish(seconds)
        say(f'{part}: {how} after {time.monotonic() - begin:.0f} s')
        _write_tables(args.out)


def _write_tables(folder: Path) -> str:
    text = render(folder)
    try:
        (folder / 'report.md').write_text(text, encoding='utf-8')
    except OSError as error:
        say(f'cannot write {folder / "report.md"}: {error.strerror}')
    return text


def _is_complete(path: Path) -> bool:
    """Whether a part came to its end, measured all that it should, and saw no test fail."""
    try:
        content = read_results(path)
    except (ValueError, FileNotFoundError):
        return False
    failed = any(row.get('outcome') == 'failed' for row in content['rows'])
    return bool(content.get('finished')) and not content.get('failed') and not failed


def _why_not(device: str) -> str | None:
    """Why the device cannot be used; None if it can."""
    import torch

    try:
        parsed = torch.device(device)
    except RuntimeError:
        return f'--device {device}: expected cuda, the number of a GPU as in cuda:1, or cpu'
    if parsed.type not in ('cuda', 'cpu'):
        return (
            f'--device {device}: the report is about NVIDIA GPUs; use cpu to test the report itself'
        )
    if parsed.type == 'cuda' and not torch.cuda.is_available():
        return f'--device {device}: torch sees no GPU; use `--device cpu --quick` to test the report itself'
    if parsed.type == 'cuda' and (parsed.index or 0) >= torch.cuda.device_count():
        return f'--device {device}: torch sees {torch.cuda.device_count()} GPUs'
    return None


class _Part:
    """A part in a process group of its own.

    Args:
        name: A key of `PARTS`.
        args: See `run_report`.
        seconds: Until it is ended.
        log: What it and libraries print.
        early: Whether it is to prepare and then wait for its turn.
    """

    def __init__(
        self, name: str, args: argparse.Namespace, seconds: float, log: IO[str], early: bool = False
    ) -> None:
        self.name = name
        self.path = args.out / f'{name}.json'
        self.path.unlink(missing_ok=True)
        kind, _, index = args.device.partition(':')
        command = [
            *(sys.executable, '-m', 'swinv2_mm.benchmarks.gpu', name, '--device', kind),
            *('--seconds', f'{seconds:.0f}', '--out', str(self.path)),
            *(['--quick'] if args.quick else []),
            *(['--early'] if early else []),
            *('--command', shlex.join(['python', 'tools/gpu_report.py', *sys.argv[1:]])),
        ]
        self.process = subprocess.Popen(
            command,
            env=_environment(kind, index),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_give_way if early else None,
        )

    def finish(self, seconds: float) -> str:
        """Give the part its turn and wait for it; returns how it ended."""
        try:
            self.process.communicate(f'{seconds}\n', seconds)
            code = self.process.returncode
            how = 'finished' if code == 0 else f'failed with exit code {code}'
        except subprocess.TimeoutExpired:
            how = f'cut off after {seconds:.0f} s'
        finally:
            self.end()
        if how != 'finished':
            _note(self.path, self.name, how)
        return how

    def end(self) -> None:
        """End whatever is left of the process group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_SECONDS_TO_END)
            except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                continue


def _give_way() -> None:
    """Leave the cores to those whose turn it is."""
    os.nice(10)


def _environment(kind: str, index: str) -> dict[str, str]:
    """Environment of a part."""
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # waiting threads leave the cores to others
    env.pop('TRITON_INTERPRET', None)
    if kind == 'cpu':
        env['TRITON_INTERPRET'] = '1'  # the kernels run in Python
    elif index:
        visible = env.get('CUDA_VISIBLE_DEVICES', '').split(',')
        env['CUDA_VISIBLE_DEVICES'] = visible[int(index)] if visible[0] else index
    root = str(Path(__file__).resolve().parents[3])
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [root, env.get('PYTHONPATH', '')]))
    return env


def _note(path: Path, part: str, how: str) -> None:
    """Write into the json of a part that it did not come to its end."""
    content: dict[str, Any] = {'header': None, 'rows': [], 'failed': [], 'finished': False}
    with contextlib.suppress(ValueError, FileNotFoundError):
        content = read_results(path)
    content['failed'].append({'what': part, 'why': how})
    try:
        write_results(path, content)
    except OSError as error:
        say(f'cannot write {path}: {error.strerror}')
