"""Compare fused residual and LayerNorm to separate operators of torch."""

import copy

import pytest
import torch
from torch import nn

from swinv2_mm.ops.execution import fuses_norm
from swinv2_mm.ops.llvm.runtime import why_not_here
from swinv2_mm.ops.norm import add_norm


def layer_norm(channels, **options):
    norm = nn.LayerNorm(channels, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize(
    'shape', [(1, 1, 1, 16), (2, 9, 13, 96), (1, 40, 33, 48), (0, 3, 3, 32), (3, 5, 768)]
)
@pytest.mark.parametrize('size', [1e-4, 1.0, 1e4])
def test_equals_torch(shape, size):
    norm, x, y = layer_norm(shape[-1]), torch.randn(shape), size * (torch.randn(shape) + 3)
    with torch.no_grad():
        assert fuses_norm(x, y, norm) == (why_not_here() is None)
        expected = (x + norm.double()(y.double())).float()
        torch.testing.assert_close(add_norm(x, y, norm.float()), expected, rtol=1e-5, atol=1e-5)
        for out in (torch.full_like(x, float('nan')), x, y):
            given = [tensor.clone() for tensor in (x, y)]
            target = out if out is not x and out is not y else given[0 if out is x else 1]
            assert add_norm(*given, norm, out=target) is target
            torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kinds', [(torch.float32, torch.bfloat16), (torch.bfloat16,) * 2], ids=str)
def test_bf16_is_rounded_once(kinds):
    norm = layer_norm(96)
    x, y = (torch.randn(3, 40, 96).to(kind) for kind in kinds)
    with torch.no_grad():
        half = copy.deepcopy(norm).bfloat16()
        for used in (norm, half) if kinds[0] == torch.bfloat16 else (norm,):
            assert fuses_norm(x, y, used) == (why_not_here() is None)
            found = add_norm(x, y, used)
            exact = (x.double() + copy.deepcopy(used).double()(y.double())).float()
            assert found.dtype == kinds[0]
            places = 2**-8 if kinds[0] == torch.bfloat16 else 1e-6
            assert ((found - exact).abs() <= places * exact.abs() + 1e-5).all()
            assert torch.equal(add_norm(x.clone(), y, used, out=x.clone()), found)
            y[0, 0, 0] = float('nan')
            assert add_norm(x, y, used)[0, 0].isnan().all()
            y[0, 0, 0] = 0
        assert not fuses_norm(x.float(), y, half) and not fuses_norm(y, x.float(), norm)


@pytest.mark.parametrize(
    ('norm', 'dtype'),
    [
        (layer_norm(20), torch.float32),
        (layer_norm(32, bias=False), torch.float32),
        (layer_norm(32).double(), torch.float64),
        (nn.Identity(), torch.float32),
        (nn.LayerNorm(32, elementwise_affine=False), torch.float32),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_do(norm, dtype):
    channels = norm.normalized_shape[0] if isinstance(norm, nn.LayerNorm) else 32
    x, y = torch.randn(2, 4, 5, channels, dtype=dtype), torch.randn(2, 4, 5, channels, dtype=dtype)
    with torch.no_grad():
        assert not fuses_norm(x, y, norm)
        assert torch.equal(add_norm(x, y, norm), x + norm(y))
        assert torch.equal(add_norm(x, y, norm, out=torch.empty_like(x)), x + norm(y))


def test_gradients_and_strides():
    norm, x = layer_norm(32), torch.randn(4, 6, 32, requires_grad=True)
    y = torch.randn(6, 4, 32).transpose(0, 1)
    add_norm(x, y, norm).sum().backward()
    assert x.grad.eq(1).all() and norm.weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(add_norm(x, y, norm), x + norm(y))


def test_a_nan_stays_in_its_row():
    x, y = torch.randn(5, 32), torch.randn(5, 32)
    y[2, 7] = float('nan')
    with torch.no_grad():
        out = add_norm(x, y, layer_norm(32))
    assert out[2].isnan().all() and out[[0, 1, 3, 4]].isfinite().all()
