"""Test that the linear layer equals that of torch with every library."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinv2_mm.ops import linear as linear_module
from swinv2_mm.ops import private
from swinv2_mm.ops.execution import takes_onednn, takes_onednn_in_bf16
from swinv2_mm.ops.linear import constant_weights, linear

# Few and many rows and channels, with and without the shape of a map: different code paths.
SHAPES = [(7, 12), (2, 3, 5, 12), (1, 12), (300, 12), (300, 24), (3, 70, 24), (2, 33, 17, 24)]
SHAPES += [(1, 2, 1200, 24), (1100, 24), (1, 1, 64, 2400), (64, 16)]


@pytest.fixture(params=[False, True], ids=['', 'intel'], autouse=True)
def intel(request, monkeypatch):
    monkeypatch.setattr(private, 'is_intel', lambda: request.param)
    return request.param


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('bias', [True, False])
def test_equals_torch_forward_and_backward(shape, bias):
    x, weight = torch.randn(shape), torch.randn(20, shape[-1])
    tensors = [x, weight, torch.randn(20)] if bias else [x, weight]
    grad = torch.randn(*shape[:-1], 20)
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        out = function(*inputs)
        out.backward(grad.to(dtype))
        results.append([out.detach(), *(tensor.grad for tensor in inputs)])
    for mine, theirs in zip(*results):
        assert mine.shape == theirs.shape
        assert mine.is_contiguous()
        size = theirs.abs().max().item()
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=2e-6 * size)


def test_views_and_transposes():
    x = torch.randn(24, 9, 14, 3).permute(1, 2, 3, 0)
    weight = torch.randn(24, 20).t()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
            torch.testing.assert_close(linear(x[:, :6, 1], weight), F.linear(x[:, :6, 1], weight))


def test_gelu_is_the_exact_one():
    x, weight, bias = torch.randn(70, 24), torch.randn(20, 24), torch.randn(20)
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double())).float()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            torch.testing.assert_close(linear(x, weight, bias, gelu=True), expected)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('bias', 'gelu'), [(True, False), (False, True), (True, True)])
def test_inference_in_bf16(shape, bias, gelu):
    """One rounding to bf16 (2^-9) for each input and the output; sums are fp32."""
    x, weight = torch.randn(shape), torch.randn(20, shape[-1])
    shift = torch.randn(20) if bias else None
    rounded = [None if given is None else given.bfloat16() for given in (x, weight, shift)]
    expected = F.linear(*(None if given is None else given.double() for given in rounded))
    expected = F.gelu(expected) if gelu else expected
    close = dict(rtol=2**-7, atol=1e-2)
    with torch.no_grad():
        found = linear(*rounded, gelu=gelu)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            cast = linear(x, weight, shift, gelu=gelu)
    for mine in (found, cast):
        assert mine.dtype == torch.bfloat16 and mine.shape == expected.shape
        torch.testing.assert_close(mine.double(), expected, **close)
    # With gradients, under another autocast or with other tensors, torch decides.
    assert not takes_onednn_in_bf16(x, weight, shift)
    with torch.enable_grad():
        assert not takes_onednn_in_bf16(*rounded)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.float16):
        assert linear(x, weight, shift).dtype == torch.float16


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(7, 12), (2, 33, 17, 24), (1, 1, 64, 2400), (1100, 24)])
def test_constant_weights_are_converted_once(shape, dtype):
    x, weight, bias = torch.randn(shape), nn.Parameter(torch.randn(20, shape[-1])), torch.randn(20)
    close = dict(rtol=1e-5, atol=1e-4) if dtype == torch.float32 else dict(rtol=2**-7, atol=0.05)
    half = torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype != torch.float32)
    with torch.no_grad(), half:
        with constant_weights():
            for rows in (x, x[:1], x.flip(0)):
                for gelu in (False, True):
                    with constant_weights():
                        found = linear(rows, weight, bias, gelu)
                    rounded = rows.to(dtype).double(), weight.to(dtype).double()
                    expected = F.linear(*rounded, bias.to(dtype).double())
                    expected = F.gelu(expected) if gelu else expected
                    assert found.dtype == dtype
                    torch.testing.assert_close(found.double(), expected, **close)
            assert len(linear_module._converted) == (1 if keeps_weights(x, weight) else 0)
            before = linear(x, weight, bias)
            weight.mul_(2)
            changed = linear(x, weight, bias) - bias.to(dtype)
            torch.testing.assert_close(changed, 2 * (before - bias.to(dtype)), **close)
            weight.data = weight / 2
            torch.testing.assert_close(linear(x, weight, bias), before, **close)
        assert not linear_module._converted
        weight.data.mul_(2)
        torch.testing.assert_close(linear(x, weight, bias) - bias.to(dtype), changed, **close)
    x.requires_grad_()
    with constant_weights():
        linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand_as(x), rtol=1e-4, atol=1e-3)


def test_copies_follow_their_weights():
    layer, x = nn.Linear(96, 64), torch.randn(100, 96)
    copies = linear_module._converted
    with torch.no_grad(), constant_weights():
        for convert in (nn.Module.bfloat16, nn.Module.float, nn.Module.half, nn.Module.float):
            convert(layer)  # the memory of the weight before must not be used again
            if layer.weight.dtype == torch.float32:
                expected = F.linear(x, layer.weight, layer.bias)
                torch.testing.assert_close(linear(x, layer.weight, layer.bias), expected)
            elif layer.weight.dtype == torch.bfloat16:
                linear(x.bfloat16(), layer.weight, layer.bias)
        if keeps_weights(x, layer.weight):
            assert len(copies) == 1
        del layer
        assert not copies


def test_a_copy_made_after_the_end_of_the_context_is_not_kept(monkeypatch):
    weight, x, context = nn.Parameter(torch.randn(64, 96)), torch.randn(100, 96), constant_weights()
    convert = linear_module.onednn_weight

    def slow(*given):
        context.__exit__(None, None, None)  # as another thread may
        return convert(*given)

    monkeypatch.setattr(linear_module, 'onednn_weight', slow)
    context.__enter__()
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    if not keeps_weights(x, weight):
        context.__exit__(None, None, None)
    assert not linear_module._converted and not linear_module._contexts


def keeps_weights(x, weight):
    return takes_onednn_in_bf16(x, weight) or (
        takes_onednn(x, weight) and torch.backends.cpu.get_cpu_capability() == 'AVX512'
    )


def test_gradients_only_where_they_are_wanted():
    x, weight = torch.randn(5, 12), torch.randn(20, 12, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(20, 12))


HAS_ONEDNN = torch.backends.mkldnn.is_available() and (
    torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
)


@pytest.mark.skipif(
    not HAS_ONEDNN, reason='torch without oneDNN, or a processor it is not faster on'
)
def test_steps_aside_where_plain_operators_are_needed(intel):
    x, weight = torch.randn(5, 12), torch.randn(20, 12)
    assert takes_onednn(x, weight) != intel  # on those, MKL trains faster
    with torch.no_grad():
        assert takes_onednn(x, weight)
    assert not takes_onednn(x.double(), weight.double())
    assert not takes_onednn(x[:0], weight)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not takes_onednn(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not takes_onednn(x, weight)
    torch.testing.assert_close(
        torch.func.vmap(lambda row: linear(row, weight))(x), F.linear(x, weight)
    )
    jacobian = torch.func.jacrev(lambda row: linear(row, weight))(x[0])
    torch.testing.assert_close(jacobian, weight)
    assert linear(x[:0], weight).shape == (0, 20)


def test_counts_as_a_product_for_torchs_flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    for rows in (5, 300):
        x, weight = torch.randn(rows, 24), torch.randn(20, 24)
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled), FlopCounterMode(display=False) as counter:
                linear(x, weight, gelu=True)
            assert counter.get_total_flops() == 2 * rows * 24 * 20
