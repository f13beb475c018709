"""Run the tools as a user does: in processes of their own, on the generated set."""

import os
import shutil
import subprocess
import sys

import forked_tools
import pytest
from process_runs import pair, start, tiny  # noqa: F401  fixtures
from tool_runs import ROOT

from swinv2_mm.datasets import generate_shapes


@pytest.fixture(scope='session')
def environment(tmp_path_factory):
    """Environment variables for the tools: a tiny generated set, one thread, this checkout."""
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, num_train=6, num_val=4, image_size=(64, 64))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return dict(
        os.environ,
        SWINV2_MM_SHAPES=str(root),
        OMP_NUM_THREADS='1',
        PYTHONPATH=path,
        PYTHON=sys.executable,
        PYTHONUNBUFFERED='1',
    )


@pytest.fixture(scope='session')
def run_tool(environment, tmp_path_factory):
    """Return a function that runs a script, or another command, and returns the finished process.

    Scripts are forked from a process that has imported the libraries; `fresh` runs them in a new interpreter.
    """

    def run(*command, env=None, fresh=False):
        command, env = [str(part) for part in command], {**environment, **(env or {})}
        if command[0].endswith('.py') and not fresh:
            return forked_tools.run_tool(
                command, env, ROOT, tmp_path_factory.mktemp('run') / 'tool'
            )
        if command[0].endswith('.py'):
            command.insert(0, sys.executable)
        return subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def root(environment, tmp_path, monkeypatch):
    """A copy of the generated set that the configs read."""
    root = shutil.copytree(environment['SWINV2_MM_SHAPES'], tmp_path / 'set')
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root))
    monkeypatch.chdir(tmp_path)
    return root
