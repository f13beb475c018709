"""A loss that stays NaN ends the run; one that recovers does not."""

from types import SimpleNamespace

import pytest
import torch

from swinv2_mm.engine.console import Console
from swinv2_mm.engine.progress import ProgressHook

NAN, FINE = {'loss': torch.tensor(float('nan'))}, {'loss': torch.tensor(1.0)}


def test_a_loss_that_stays_nan_ends_the_run(capsys):
    hook = ProgressHook(Console(), interval=1)
    with pytest.raises(
        FloatingPointError, match='nan for 10 iterations in a row, up to iteration 10'
    ):
        for iteration in range(100):
            hook._check_loss(SimpleNamespace(iter=iteration), NAN)
    assert capsys.readouterr().out == 'warning: the loss is nan at iteration 1\n'


def test_a_loss_that_recovers_does_not():
    hook = ProgressHook(Console(), interval=1)
    for iteration in range(100):
        hook._check_loss(SimpleNamespace(iter=iteration), FINE if iteration % 9 == 8 else NAN)
