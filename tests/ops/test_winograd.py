"""Convolutions by Winograd's algorithm against torch's in fp64, and where they are used."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinv2_mm.ops import winograd
from swinv2_mm.ops.execution import takes_winograd
from swinv2_mm.ops.llvm import runtime
from swinv2_mm.ops.winograd import WinogradConv2d, use_winograd

pytestmark = pytest.mark.skipif(
    runtime.why_not_here() is not None, reason=f'no kernels: {runtime.why_not_here()}'
)
SIZES = [(32, 32), (33, 42), (1, 250), (35, 31)]  # two maps have at least 64 tiles


def layer(inputs=32, outputs=48, **options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options))
    assert use_winograd(module) == 1
    return module[0]


def assert_near(value, expected):
    """Values differ by at most 2e-5 of the largest one."""
    scale = expected.abs().max()
    torch.testing.assert_close(value.double() / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_outputs_and_gradients_equal_those_of_torch(size, bias, monkeypatch):
    conv = layer(bias=bias)
    called = []
    monkeypatch.setattr(
        winograd, 'convolve', lambda *given, f=winograd.convolve: called.append(1) or f(*given)
    )
    x = torch.randn(2, 32, *size, requires_grad=True)
    y = conv(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert len(called) == 2
    weights = [x, *conv.parameters()]
    wide = [weight.detach().double().requires_grad_() for weight in weights]
    expected = F.conv2d(*wide, padding=1)
    expected.backward(grad.double())
    assert_near(y, expected)
    for weight, other in zip(weights, wide):
        assert_near(weight.grad, other.grad)
    with torch.inference_mode():
        assert torch.equal(conv(x), y)


def test_the_layout_of_memory_is_that_of_the_input():
    conv, x = layer(), torch.randn(1, 32, 40, 40)
    assert conv(x).is_contiguous()
    y = conv(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, conv(x))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('numbers', [1, 6000, 20000, 10**6])
def test_a_few_rows_at_a_time_give_the_same(numbers, layout, monkeypatch):
    """One row of tiles, more, whole maps, and several maps."""
    conv, x = layer(), torch.randn(3, 32, 37, 42).contiguous(memory_format=layout).requires_grad_()
    results = []
    for band in (winograd._BAND, numbers):
        monkeypatch.setattr(winograd, '_BAND', band)
        y = conv(x)
        assert y.is_contiguous(memory_format=layout)
        grads = torch.autograd.grad(y.sin().sum(), [x, *conv.parameters()])
        results.append([y, *grads])
    for value, expected in zip(*results):
        assert_near(value, expected.double())
    assert torch.equal(results[0][0], results[1][0])


def test_views_of_larger_maps():
    conv, x = layer(), torch.randn(2, 40, 50, 60)
    part = x[:, 4:36, 3:, 5:49]
    assert_near(
        conv(part), F.conv2d(part.double(), conv.weight.double(), conv.bias.double(), padding=1)
    )
    grad = torch.ones(()).expand(2, 48, 47, 44)  # strides of zero
    given = torch.autograd.grad(conv(part), conv.weight, grad)[0]
    wide = conv.weight.detach().double().requires_grad_()
    expected = torch.autograd.grad(F.conv2d(part.double(), wide, padding=1), wide, grad.double())[0]
    assert_near(given, expected)


@pytest.mark.parametrize('shape', [(2, 16, 70), (1, 131, 16), (3, 64, 64), (2, 3, 9)])
def test_transpositions(shape):
    x = torch.randn(shape[0] + 1, shape[1] + 3, shape[2] + 5)[1:, 2:-1, :-5]
    out = torch.full((shape[0], shape[2], shape[1] + 2), 7.0)
    winograd._transpose(x, out[..., :-2])
    assert torch.equal(out[..., :-2], x.transpose(1, 2))
    assert (out[..., -2:] == 7).all()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_outputs_can_be_changed_in_place(layout):
    conv, x = layer(), torch.randn(1, 32, 40, 40).contiguous(memory_format=layout)
    conv(x).relu_().square().sum().backward()
    grads = [weight.grad for weight in conv.parameters()]
    conv.zero_grad()
    F.conv2d(x, conv.weight, conv.bias, padding=1).relu_().square().sum().backward()
    for grad, weight in zip(grads, conv.parameters()):
        assert_near(grad, weight.grad.double())


def test_second_derivatives_equal_those_of_torch():
    conv = layer(8, 8).requires_grad_()
    x = torch.randn(1, 8, 32, 33, requires_grad=True)

    def penalty(run):
        first = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), (x, conv.weight))

    plain = penalty(lambda x: F.conv2d(x, conv.weight, conv.bias, padding=1))
    for value, expected in zip(penalty(conv), plain):
        assert_near(value, expected.double())


def test_what_other_convolutions_compute_is_left_to_torch():
    conv, x = layer(), torch.randn(2, 32, 32, 32)
    assert takes_winograd(x, conv.weight, conv.bias)
    for other in (x[:1, :, :24], x.double(), x[:0], x[0], x.to('meta')):
        assert not takes_winograd(other, conv.weight, conv.bias)
    odd = layer(32, 31)
    assert not takes_winograd(x, odd.weight, odd.bias)
    torch.testing.assert_close(odd(x), F.conv2d(x, odd.weight, odd.bias, padding=1))
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    exported = torch.export.export(nn.Sequential(conv), (x,))
    assert_near(exported.module()(x), conv(x).double())
    with pytest.raises(RuntimeError, match='to have 32 channels'):
        conv(x[:, :16])


def test_only_plain_3_x_3_convolutions_change():
    class Other(nn.Conv2d):
        pass

    stays = [
        nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, 2, 1), Other(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode='reflect'), nn.Conv2d(8, 8, 3, padding='same'),
    ]  # fmt: skip
    model = nn.Sequential(*stays, nn.Conv2d(8, 8, 3, padding=1))
    kinds, keys = [type(module) for module in stays], list(model.state_dict())
    assert use_winograd(model) == 1
    assert [type(module) for module in stays] == kinds
    assert type(model[-1]) is WinogradConv2d
    assert list(model.state_dict()) == keys
    seen = []
    model[-1].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 8, 32, 32)
    y = model[-1](x)
    assert seen
    assert torch.equal(copy.deepcopy(model)[-1](x), y)
