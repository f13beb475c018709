"""Compare `sigmoid_focal_loss` of mmcv on the stand-in to the formula of the paper in float64."""

import importlib

import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()


def naive_focal_loss(logits, target, gamma, alpha, weight=None):
    """Compute -alpha_t (1 - p_t)^gamma log(p_t) elementwise; a target of C is background."""
    rows = []
    for n in range(logits.size(0)):
        for c in range(logits.size(1)):
            p = 1 / (1 + torch.exp(-logits[n, c]))
            p_t, alpha_t = (p, alpha) if target[n] == c else (1 - p, 1 - alpha)
            loss = -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)
            rows.append(loss if weight is None else loss * weight[target[n]])
    return torch.stack(rows).view(logits.shape)


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize('weighted', [False, True])
def test_loss_and_gradient_equal_the_formula(gamma, alpha, weighted):
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 2, 1, 0, 1 if weighted else 3])
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    expected = naive_focal_loss(logits, target, gamma, alpha, weight)
    for reduction, reduced in (
        ('none', expected),
        ('sum', expected.sum()),
        ('mean', expected.sum() / 7),
    ):
        loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, reduction)
        torch.testing.assert_close(loss, reduced, rtol=1e-10, atol=1e-12)
        upstream = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
        ours, theirs = (
            torch.autograd.grad(x, logits, upstream, retain_graph=True)[0] for x in (loss, reduced)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor(
        [[-200.0, 200.0, 0.0], [200.0, -200.0, 0.0]], dtype=dtype, requires_grad=True
    )
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 3]), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    assert loss.dtype == dtype and loss.isfinite().all() and logits.grad.isfinite().all()
    assert loss[0, 0] > 40 and loss[0, 1] > 100 and loss[1, 1] == 0


def test_no_samples():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 3)
