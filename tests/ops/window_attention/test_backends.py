"""Compare outputs and gradients of every backend to the reference, in every dtype."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swinv2_mm.ops.window_attention import (
    WindowPartition,
    choose_backend,
    window_attention,
)
from swinv2_mm.ops.window_attention.reference import reference_window_attention

# Largest relative difference from the fp64 reference with the same rounded inputs.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
SIDES = st.integers(1, 20)
PAIRS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def case(size, window, shifted, images=2, heads=2, dim=8, dtype=torch.float32, seed=0):
    """Return qkv, scale, bias table, output gradient and partition."""
    generator = torch.Generator().manual_seed(seed)
    shift = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    partition = WindowPartition.fit(size, window, shift)
    qkv = torch.randn(images, *size, 3 * heads * dim, generator=generator).to(dtype)
    grad = torch.randn(images, *size, heads * dim, generator=generator).to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    scale = torch.rand(heads, 1, 1, generator=generator).to(exact) * 20 + 1
    sides = (2 * side - 1 for side in partition.window)
    table = torch.randn(heads, *sides, generator=generator).to(exact)
    return (qkv, scale, table), grad, partition


def run(attention, tensors, grad, partition):
    """Return the output and the gradients of all three inputs."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = attention(*tensors, partition)
    out.backward(grad)
    return [out.detach(), *(tensor.grad for tensor in tensors)]


def check(attention, tensors, grad, partition, dtype):
    results = run(attention, tensors, grad, partition)
    exact = run(reference_window_attention, [x.double() for x in tensors], grad.double(), partition)
    for name, mine, theirs in zip(('output', 'qkv', 'scale', 'table'), results, exact):
        assert mine.isfinite().all(), name
        assert mine.dtype == (dtype if name in ('output', 'qkv') else tensors[1].dtype), name
        # Gradients of scale and table are sums of terms of order one that may cancel. With a single key they should be
        # 0, and contain rounding errors only.
        floor = 1.0 if name in ('scale', 'table') else 1e-2
        size = theirs.abs().max().clamp_min(floor).item()
        assert (mine - theirs).abs().max().item() <= TOLERANCES[dtype] * size, name


def fused(qkv, scale, table, partition):
    return window_attention(qkv, scale, table, partition, backend='fused')


@given(size=st.tuples(SIDES, SIDES), window=PAIRS, shifted=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_fused_equals_the_reference(size, window, shifted, seed):
    tensors, grad, partition = case(size, window, shifted, seed=seed)
    check(fused, tensors, grad, partition, torch.float32)


@pytest.mark.parametrize('dtype', list(TOLERANCES))
@pytest.mark.parametrize('size', [(16, 16), (13, 22), (5, 30)])
def test_fused_in_every_dtype(dtype, size):
    tensors, grad, partition = case(size, (8, 6), True, dim=32, heads=3, dtype=dtype)
    check(fused, tensors, grad, partition, dtype)


@pytest.mark.parametrize('windows', [1, 3])
def test_chunks_change_nothing(monkeypatch, windows):
    tensors, grad, partition = case((17, 20), (4, 4), True)
    whole = run(fused, tensors, grad, partition)
    monkeypatch.setattr('swinv2_mm.ops.window_attention.fused.CHUNK_BYTES', windows * 2 * 256 * 4)
    for mine, theirs in zip(run(fused, tensors, grad, partition), whole):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_zero_keys_at_loss_scale_65536(dtype):
    """Keys do not have a bias, so a constant image has zero keys."""
    (qkv, scale, table), grad, partition = case((10, 10), (8, 8), True, dtype=dtype)
    qkv[:, 3:7] = 0
    loss = (grad.sign().float() * 65536 / grad.numel()).to(dtype)  # gradient of a mean
    for value in run(fused, (qkv, scale, table), loss, partition):
        assert value.isfinite().all()


def test_autocast_does_not_blur_the_scores():
    tensors, grad, partition = case((9, 12), (4, 4), True)
    plain = run(fused, tensors, grad, partition)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = run(fused, tensors, grad, partition)
    for mine, theirs in zip(mixed, plain):
        assert torch.equal(mine, theirs)


def test_memory_of_training_does_not_grow_with_the_scores():
    """Only the inputs are stored for the backward pass, not windows x N x N scores."""
    tensors, _, partition = case((64, 64), (16, 16), True, images=1)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    tensors = [tensor.requires_grad_() for tensor in tensors]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        fused(*tensors, partition)
    assert kept == sum(tensor.numel() for tensor in tensors)


def test_the_choice_of_a_backend():
    cpu = torch.device('cpu')
    assert choose_backend('auto', cpu, dtype=torch.float64) == 'fused'
    assert choose_backend('auto', torch.device('meta')) == 'fused'
    assert choose_backend('reference', cpu) == 'reference'
    assert choose_backend('auto', cpu, dropout_p=0.1) == 'reference'
    with pytest.raises(
        ValueError, match=r"'fused' cannot drop.*dropout_p is 0\.1.*attn_drop_rate=0"
    ):
        choose_backend('fused', cpu, dropout_p=0.1)


def test_unknown_backend_is_refused_by_name():
    tensors, _, partition = case((4, 4), (4, 4), False)
    with pytest.raises(ValueError, match=r"unknown attention backend 'warp'.*auto, reference"):
        window_attention(*tensors, partition, backend='warp')
