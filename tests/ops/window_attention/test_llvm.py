"""Compare the kernels compiled by LLVM to the reference, on all supported instruction sets."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import PAIRS, SIDES, case, check, run
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.ops.execution import why_not_llvm
from swinv2_mm.ops.window_attention import WindowPartition, choose_backend, window_attention
from swinv2_mm.ops.window_attention import llvm_backend as backend

CPU = torch.device('cpu')
REASON = why_not_llvm(CPU)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NARROW = torch.backends.cpu.get_cpu_capability() == 'AVX2'


def llvm(qkv, scale, table, partition):
    return window_attention(qkv, scale, table, partition, backend='llvm')


@pytest.mark.skipif(NARROW, reason='all tests here are with AVX2')
def test_kernels_with_avx2():
    """Vectors of half the length, which processors with AVX-512 support, too."""
    command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', __file__]
    environment = {**os.environ, 'ATEN_CPU_CAPABILITY': 'avx2'}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout[-5000:] + child.stderr[-2000:]
    assert ' passed' in child.stdout


@given(
    size=st.tuples(SIDES, SIDES),
    window=PAIRS,
    shifted=st.booleans(),
    dim=st.sampled_from([8, 16, 24, 32]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(size, window, shifted, dim, seed):
    check(llvm, *case(size, window, shifted, dim=dim, seed=seed), torch.float32)


@pytest.mark.parametrize(
    ('size', 'window', 'dim', 'heads'),
    [
        ((16, 16), (8, 8), 32, 3),
        ((50, 61), (24, 24), 32, 1),
        ((40, 33), (16, 16), 32, 4),
        ((25, 37), (12, 9), 64, 2),
        ((33, 20), (8, 12), 128, 2),
        ((40, 40), (32, 32), 32, 1),
    ],
)
@pytest.mark.parametrize('shifted', [False, True])
def test_windows_of_real_size(size, window, dim, heads, shifted):
    check(llvm, *case(size, window, shifted, heads=heads, dim=dim), torch.float32)


@pytest.mark.parametrize('dim', [8, 16, 24, 32, 128])
def test_maps_in_bf16_are_computed_in_fp32(dim):
    (qkv, scale, table), _, partition = case((13, 18), (6, 5), True, heads=3, dim=dim)
    qkv = qkv.bfloat16()
    qkv[0, 1, 2], qkv[1, 12, 17, 0] = 0, float('nan')
    with torch.no_grad():
        found = llvm(qkv, scale, table, partition)
        assert found.dtype == torch.bfloat16
        expected = llvm(qkv.float(), scale, table, partition).bfloat16()
    assert torch.equal(found.isnan(), expected.isnan()) and 0 < found.isnan().sum() < 200 * dim
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_extreme_scores():
    """Maximum scale and cosines of one: scores between -100 and 100, all weight on one key."""
    (qkv, scale, table), grad, partition = case((16, 20), (8, 8), True, dim=32)
    qkv[..., 64:128] = qkv[..., :64] * 1e3  # keys parallel to queries
    check(llvm, (qkv, torch.full_like(scale, 100.0), table), grad, partition, torch.float32)


@pytest.mark.parametrize('size', [0.0, 1e-9, 1e-4, 1e8])
def test_short_and_long_vectors(size):
    (qkv, scale, table), grad, partition = case((9, 10), (4, 4), True, dim=16)
    qkv[:, 3:6, :, :64] *= size  # queries and keys
    check(llvm, (qkv, scale, table), grad, partition, torch.float32)


def test_a_nan_stays_in_its_window():
    (qkv, scale, table), _, partition = case((16, 16), (8, 8), False, images=1, dim=32)
    qkv[0, 2, 3, 70] = float('nan')  # a key
    out = llvm(qkv, scale, table, partition)
    assert out[0, :8, :8, :32].isnan().all()
    assert out[0, :8, :8, 32:].isfinite().all()
    assert out[0, 8:].isfinite().all() and out[0, :, 8:].isfinite().all()


def test_strided_inputs():
    (qkv, scale, table), grad, partition = case((9, 12), (4, 4), True, dim=16)
    check(llvm, (qkv, scale, table), grad, partition, torch.float32)
    wide = torch.randn(2, 12, 9, 96 + 7).transpose(1, 2)[..., 3:-4]
    expected = llvm(wide.contiguous(), scale, table, partition)
    assert torch.equal(
        llvm(wide, scale, table.transpose(1, 2).contiguous().mT, partition), expected
    )


@pytest.mark.parametrize('images', [0, 1])
def test_empty_batches(images):
    (qkv, scale, table), grad, partition = case((9, 12), (4, 4), True, images=images, dim=16)
    results = run(llvm, (qkv, scale, table), grad, partition)
    assert [tuple(result.shape) for result in results] == [
        (images, 9, 12, 32),
        *(tuple(tensor.shape) for tensor in (qkv, scale, table)),
    ]
    assert images or not any(result.any() for result in results[2:])


def test_frozen_inputs():
    (qkv, scale, table), grad, partition = case((9, 12), (4, 4), True, dim=16)
    whole = run(llvm, (qkv, scale, table), grad, partition)
    qkv.requires_grad_()
    llvm(qkv, scale, table, partition).backward(grad)
    assert torch.equal(qkv.grad, whole[1])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_nothing(threads):
    arguments = case((40, 56), (8, 8), True, dim=32, heads=3)
    threads(1)
    expected = run(llvm, *arguments)
    for count in (2, 3, 5):
        threads(count)
        first, second = run(llvm, *arguments), run(llvm, *arguments)
        assert torch.equal(first[0], expected[0])
        for mine, again, theirs in zip(first, second, expected):
            assert torch.equal(mine, again)
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_calls_at_the_same_time():
    arguments = [case((24, 24 + 4 * seed), (8, 8), True, dim=32, seed=seed) for seed in range(6)]
    expected = [run(llvm, *given) for given in arguments]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            found = pool.map(lambda given: run(llvm, *given), arguments)
            for mine, theirs in zip(found, expected):
                assert all(torch.equal(*pair) for pair in zip(mine, theirs))


def test_defaults_of_torch_do_not_matter():
    arguments = case((11, 13), (4, 4), True, dim=16)
    expected = run(llvm, *arguments)
    backend._plan.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device('meta'):
            found = run(llvm, *arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_in_a_forked_process():
    """Forked processes of data loaders have one thread."""
    code = (
        'import os, torch\n'
        'from swinv2_mm.ops.window_attention import WindowPartition, window_attention\n'
        'partition = WindowPartition.fit((32, 32), (8, 8), (4, 4))\n'
        'arguments = torch.randn(2, 32, 32, 192), torch.ones(2, 1, 1), torch.zeros(2, 15, 15), partition\n'
        'expected = window_attention(*arguments, backend="llvm")\n'
        'child = os.fork()\n'
        'if not child:\n'
        '    torch.set_num_threads(1)\n'
        '    os._exit(not torch.equal(window_attention(*arguments, backend="llvm"), expected))\n'
        'assert os.waitpid(child, 0)[1] == 0\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_as_an_operator_of_torch():
    (qkv, scale, table), _, partition = case((9, 12), (4, 4), True, images=1, dim=16)
    tensors = [tensor.requires_grad_() for tensor in (qkv, scale, backend.lay_out_table(table))]
    torch.library.opcheck(
        backend.attention,
        (*(tensor.detach().requires_grad_() for tensor in tensors), [4, 4], [*partition.shift]),
    )


def test_its_products_are_counted():
    (qkv, scale, table), _, partition = case((16, 16), (8, 8), False, images=2, dim=32)
    with FlopCounterMode(display=False) as counter:
        out = llvm(qkv.requires_grad_(), scale, table, partition)
    forward = counter.get_total_flops()
    assert (
        forward == 2 * 2 * (2 * 4) * 2 * 64 * 64 * 32
    )  # FLOPs, products, windows, heads, tokens, channels
    with counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_the_choice():
    assert choose_backend('auto', CPU) == 'llvm'
    assert choose_backend('auto', CPU, head_dim=20) == 'fused'
    with pytest.raises(
        ValueError, match=r"'llvm' cannot run here, because .* fp32 and bf16, not for torch\.fl"
    ):
        choose_backend('llvm', CPU, dtype=torch.float16)
    assert choose_backend('auto', CPU, dtype=torch.bfloat16) == 'llvm'
    assert choose_backend('auto', CPU, dtype=torch.float16) == 'fused'
    with pytest.raises(ValueError, match='a multiple of 8 channels up to 128, not 20'):
        choose_backend('llvm', CPU, head_dim=20)
    with pytest.raises(
        ValueError, match="it is for CPUs, and the tensors are on the device 'meta'"
    ):
        choose_backend('llvm', torch.device('meta'))
    with pytest.raises(ValueError, match=r"'llvm' cannot drop.*dropout_p is 0\.1"):
        choose_backend('llvm', CPU, dropout_p=0.1)


def test_shapes_that_do_not_fit_are_refused():
    (qkv, scale, table), _, partition = case((9, 12), (4, 4), True, dim=16)
    with pytest.raises(ValueError, match='not a map of 9 x 12 tokens'):
        llvm(qkv[:, :8], scale, table, partition)
    with pytest.raises(ValueError, match='do not fit together'):
        llvm(qkv, scale, table[:, 1:], partition)
    other = WindowPartition.fit((9, 12), (5, 4), (2, 2))
    with pytest.raises(ValueError, match='do not fit together'):
        llvm(qkv, scale, table, other)


@pytest.mark.parametrize(
    ('environment', 'before', 'reason'),
    [
        ({}, 'import sys; sys.modules["llvmlite"] = None', 'llvmlite is not installed'),
        ({'ATEN_CPU_CAPABILITY': 'default'}, '', 'needs a processor with AVX2 or AVX-512'),
    ],
)
def test_other_backends_run_where_it_cannot(environment, before, reason):
    code = (
        f'{before}\n'
        'import torch\n'
        'from swinv2_mm import SwinTransformerV2\n'
        'from swinv2_mm.ops.window_attention import choose_backend\n'
        'from swinv2_mm.ops.execution import why_not_llvm\n'
        f'assert {reason!r} in why_not_llvm(torch.device("cpu"))\n'
        'assert choose_backend("auto", torch.device("cpu")) == "fused"\n'
        'arch = dict(embed_dims=32, depths=[2], num_heads=[1])\n'
        'model = SwinTransformerV2(arch, window_size=4, out_indices=(0,)).eval()\n'
        'image = torch.randn(1, 3, 40, 40)\n'
        'with torch.no_grad():\n'
        '    chunked = model(image)[0]\n'
        'torch.testing.assert_close(chunked, model(image)[0])\n'
    )
    environment = {**os.environ, **environment}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True, timeout=120)
