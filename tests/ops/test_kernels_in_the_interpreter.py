"""Rerun the tests of Triton kernels in Triton's interpreter; see `triton_runs`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from triton_runs import outside

TESTS = Path(__file__).parents[1]
FILES = (
    'ops/window_attention/test_triton.py',
    'ops/window_attention/test_triton_on_gpus.py',
    'models/backbones/test_on_gpus.py',
)


@outside
@pytest.mark.parametrize('which', ['not long', pytest.param('long', marks=pytest.mark.long)])
def test_kernels_in_the_interpreter(which):
    pytest.importorskip('triton')
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', which]
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    child = subprocess.run(
        [*command, *(str(TESTS / file) for file in FILES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert child.returncode == 0, child.stdout[-5000:] + child.stderr[-2000:]
    assert ' passed' in child.stdout


def test_no_file_is_left_out():
    """Return the files with tests that the interpreter runs."""
    marked = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob('test_*.py')
        if re.search('^@(kernels|only_interpreted)$', path.read_text(encoding='utf-8'), re.M)
    }
    assert marked == set(FILES)
