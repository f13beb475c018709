"""Processes that tests send signals to: fixtures that start them and functions that look at them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tool_runs import ROOT

TINY = Path(__file__).with_name('tiny_run.py')


@pytest.fixture
def start(environment):
    """Return a function that starts a command in a session of its own, and that ends it with the test."""
    started = []

    def run(*command, env=None, **options):
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], env={**environment, **(env or {})}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture
def tiny(start, tmp_path):
    """Return a function that starts `tiny_run.py` in `tmp_path / 'run'`."""

    def run(**settings):
        return start(TINY, tmp_path / 'run', json.dumps(settings))

    return run


def read_until(process, pattern):
    """Read the output of a process until a line matches; return the match and what came before."""
    lines = []
    deadline = threading.Timer(90, os.killpg, (process.pid, signal.SIGKILL))  # ends the loop
    deadline.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if match := re.search(pattern, line):
                return match
    finally:
        deadline.cancel()
    raise AssertionError(f'{pattern} did not come:\n{"".join(lines)}')


def finish(process, timeout=180):
    """Wait for a process and return its exit code and the rest of its output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def iteration_of(path):
    return torch.load(path, weights_only=False)['meta']['iter']


def children(pid):
    """Ids of the child processes of a process."""
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def ends(pid, seconds):
    """Return whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z':
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def pair(start, tmp_path):
    """Return a function that starts `tiny_run.py` in two processes, and its work directory."""

    def run(port, **settings):
        options = json.dumps({'launcher': 'pytorch', 'iters': 10**6, 'sleep': 0.05, **settings})
        launcher = [
            '-m',
            'swinv2_mm.engine.processes',
            '--nproc_per_node=2',
            f'--master_port={port}',
        ]
        return start(*launcher, TINY, tmp_path / 'run', options)

    return run


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
