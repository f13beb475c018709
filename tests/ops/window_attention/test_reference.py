"""Compare the reference attention to loops, and test difficult inputs."""

import pytest
import torch

from swinv2_mm.ops.window_attention.reference import attend, expand_bias, fold_bias, normalize


def inputs(windows=3, images=2, heads=2, tokens=6, dim=4, dtype=torch.float64):
    q, k, v = (torch.randn(images * windows, heads, tokens, dim, dtype=dtype) for _ in range(3))
    scale = torch.rand(heads, 1, 1, dtype=dtype) * 20 + 1
    bias = torch.randn(heads, tokens, tokens, dtype=dtype)
    regions = torch.randint(0, 2, (windows, tokens))
    return q, k, v, scale, bias, regions


def looped(q, k, v, scale, bias, regions):
    out = torch.zeros_like(v)
    for window in range(q.shape[0]):
        labels = regions[window % len(regions)]
        for head in range(q.shape[1]):
            for token in range(q.shape[2]):
                query = q[window, head, token]
                seen = [other for other in range(q.shape[2]) if labels[other] == labels[token]]
                scores = torch.stack(
                    [
                        query
                        @ k[window, head, other]
                        / query.norm()
                        / k[window, head, other].norm()
                        * scale[head].item()
                        + bias[head, token, other]
                        for other in seen
                    ]
                )
                out[window, head, token] = scores.softmax(0) @ v[window, head, seen]
    return out


def test_equals_the_loop():
    args = inputs()
    torch.testing.assert_close(attend(*args), looped(*args))


def test_gradients_of_all_five_inputs():
    *tensors, regions = inputs(windows=2, images=1, tokens=4, dim=3)
    for tensor in tensors:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: attend(*args, regions), tensors)


def test_no_score_leaks_between_regions():
    """With the usual mask of -100, a masked score of 100 exceeds an unmasked score of -100."""
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    k = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[None, None]
    v = torch.tensor([[1.0, 1.0], [7.0, 7.0]])[None, None]
    regions = torch.tensor([[0, 1]])
    out = attend(q, k, v, torch.full((1, 1, 1), 100.0), torch.zeros(1, 2, 2), regions)
    assert torch.equal(out, v)


def test_normalize_is_unit_length_and_harmless_at_zero():
    x = torch.tensor(
        [[3.0, 4.0], [0.0, 0.0], [3e-5, 4e-5]], dtype=torch.float16, requires_grad=True
    )
    unit = normalize(x)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    (unit.sum() * 65536).backward()
    assert x.grad[1].eq(0).all()
    assert x.grad[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_double(dtype):
    args = inputs(dim=32, tokens=16)
    half = attend(*(tensor.to(dtype) for tensor in args[:3]), *args[3:])
    assert half.dtype == dtype
    exact = attend(*(tensor.to(dtype).double() for tensor in args[:3]), *args[3:])
    # Rounding of the weights (at most 1) and of the sum (at most max |v|).
    bound = 2 * torch.finfo(dtype).eps * args[2].abs().max().item()
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=bound)


def test_dropout_drops_weights_and_keeps_the_expectation():
    q, k, _, scale, bias, _ = inputs(images=1, windows=1, dim=8, tokens=8)
    v = torch.ones_like(q)
    runs = torch.stack([attend(q, k, v, scale, bias, dropout_p=0.5) for _ in range(400)])
    assert runs.std() > 0.1
    assert (runs.mean() - 1.0).abs() < 0.05


@pytest.mark.parametrize('window', [(1, 1), (3, 5), (4, 4), (2, 1)])
def test_folding_is_the_adjoint_of_expanding(window):
    table = torch.randn(2, 2 * window[0] - 1, 2 * window[1] - 1, dtype=torch.float64)
    bias = expand_bias(table.requires_grad_())
    grad = torch.randn_like(bias)
    bias.backward(grad)
    torch.testing.assert_close(fold_bias(grad, window), table.grad)
