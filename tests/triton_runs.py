"""Where tests of Triton's kernels run: on a GPU where there is one, else in Triton's interpreter on the CPU.

Triton decides at its import whether it interprets. The tests therefore run in a pytest of their own, which
`ops/test_kernels_in_the_interpreter.py` starts.
"""

import os

import pytest
import torch

from swinv2_mm.ops.execution import why_not_triton

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = torch.device('cpu' if INTERPRETED else 'cuda')
outside = pytest.mark.skipif(INTERPRETED, reason='not about the kernels')
only_interpreted = pytest.mark.skipif(not INTERPRETED, reason='needs the interpreter')


def gpu(test):
    """Mark a test that only a GPU can run."""
    runnable = (
        not INTERPRETED
        and torch.cuda.is_available()
        and why_not_triton(torch.device('cuda', torch.cuda.current_device())) is None
    )
    test = pytest.mark.skipif(not runnable, reason='needs a GPU that Triton supports')(test)
    return pytest.mark.gpu(test)


def kernels(test):
    """Mark a test that runs kernels, wherever they can."""
    return test if INTERPRETED else gpu(test)
