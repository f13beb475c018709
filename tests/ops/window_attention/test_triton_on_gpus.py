"""Test the Triton backend on GPUs: streams, strides, large sizes, devices, graphs."""

import builtins

import pytest
import torch
import torch._dynamo.testing
from test_backends import case, check, run
from test_triton import on_device, triton
from torch.utils.checkpoint import checkpoint
from triton_runs import DEVICE, INTERPRETED, gpu, kernels

from swinv2_mm.ops.window_attention import WindowPartition, window_attention
from swinv2_mm.ops.window_attention import triton_backend as backend
from swinv2_mm.ops.window_attention.reference import reference_window_attention

CUDA = torch.device('cuda', 0)


both_kinds = pytest.mark.parametrize(
    ('size', 'window'), [((5, 6), (4, 4)), ((9, 8), (9, 8))], ids=['one block', 'several blocks']
)


def usual_case(size=(5, 6), window=(4, 4), heads=1, seed=0):
    """Return padded and shifted windows of 16 tokens in fp16, shared by most tests to compile few kernels."""
    options = dict(images=1, heads=heads, dim=32, dtype=torch.float16, seed=seed)
    return case(size, window, True, **options)


def assert_equal(results, others):
    for mine, theirs in zip(results, others, strict=True):
        assert torch.equal(mine, theirs)


# Each number of channels needs new kernels, which take seconds to compile.
@kernels
@pytest.mark.parametrize('dim', [40, 48])
def test_channels_of_a_head(dim):
    tensors, grad, partition = on_device(
        *case((4, 6), (4, 4), False, images=1, dim=dim, dtype=torch.float16)
    )
    check(triton, tensors, grad, partition, torch.float16)


@gpu
@pytest.mark.parametrize(
    ('size', 'window'),
    [((32, 32), (32, 32)), ((24, 20), (24, 24)), ((20, 9), (16, 7))],
)  # fmt: skip
def test_windows_of_up_to_1024_tokens(size, window):
    tensors, grad, partition = on_device(
        *case(size, window, True, images=1, heads=1, dim=32, dtype=torch.float16)
    )
    check(triton, tensors, grad, partition, torch.float16)


@kernels
@both_kinds
def test_strides_do_not_matter(size, window):
    """Test part of a larger map, a channels-first map, and a table with the strides of the position bias."""
    (qkv, scale, table), grad, partition = on_device(*usual_case(size, window, heads=2))
    plain = run(triton, (qkv, scale, table), grad, partition)
    larger = qkv.new_zeros(2, qkv.shape[1] + 1, qkv.shape[2] + 2, qkv.shape[3] + 8)
    larger[1:, 1:, 1:-1, 8:] = qkv
    channels_first = qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    heads_last = table.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for strided in (larger[1:, 1:, 1:-1, 8:], channels_first):
        assert not strided.is_contiguous() and not heads_last.is_contiguous()
        strided, bias = (x.detach().requires_grad_() for x in (strided, heads_last))
        factor = scale.detach().requires_grad_()
        out = triton(strided, factor, bias, partition)
        out.backward(grad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
        assert_equal((out, strided.grad, factor.grad, bias.grad), plain)


@kernels
@both_kinds
def test_every_number_of_an_output_is_written(size, window):
    """Deterministic algorithms fill uninitialised memory with NaN."""
    tensors, grad, partition = on_device(*usual_case(size, window))
    plain = run(triton, tensors, grad, partition)
    torch.use_deterministic_algorithms(True)
    try:
        assert_equal(run(triton, tensors, grad, partition), plain)
    finally:
        torch.use_deterministic_algorithms(False)


@kernels
@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpointing_changes_no_gradient(use_reentrant):
    tensors, grad, partition = on_device(*usual_case())

    def recomputed(*inputs):
        return checkpoint(triton, *inputs, use_reentrant=use_reentrant)

    assert_equal(run(recomputed, tensors, grad, partition), run(triton, tensors, grad, partition))


@kernels
def test_inference_mode_and_no_grad_give_the_same():
    tensors, _, partition = on_device(*usual_case())
    with torch.no_grad():
        plain = triton(*tensors, partition)
    with torch.inference_mode():
        assert torch.equal(triton(*tensors, partition), plain)


@kernels
def test_a_second_derivative_is_that_of_the_reference():
    (qkv, scale, table), _, partition = on_device(*usual_case())
    found = []
    for attention in (triton, reference_window_attention):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (qkv, scale, table)]
        out = attention(*inputs, partition)
        firsts = torch.autograd.grad(out.float().square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(first.square().sum() for first in firsts), inputs))
    for mine, theirs in zip(*found):
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()


@kernels
def test_compiled_once_for_several_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')

    @torch.compile(fullgraph=True, backend=counter)
    def attention(qkv, scale, table):
        partition = WindowPartition.fit((qkv.shape[1], qkv.shape[2]), (4, 4), (2, 2))
        return triton(qkv, scale, table, partition) * 1

    for size in ((5, 6), (7, 5)):
        tensors, grad, partition = on_device(*usual_case(size))
        plain = run(triton, tensors, grad, partition)

        def compiled(qkv, scale, table, _):
            for axis in (1, 2):
                torch._dynamo.mark_dynamic(qkv, axis)
            return attention(qkv, scale, table)

        assert_equal(run(compiled, tensors, grad, partition), plain)
    assert counter.frame_count == 1


@kernels
def test_tf32_is_read_from_either_setting_of_torch():
    """Since torch 2.9 there are two settings; the older one cannot be read after the newer one was set."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, 'fp32_precision'):
        pytest.skip('this torch has only one setting')
    tensors, grad, partition = on_device(*case((4, 4), (4, 4), False, images=1, heads=1))
    plain = run(triton, tensors, grad, partition)
    try:
        for name in ('tf32', 'ieee'):
            matmul.fp32_precision = name
            results = run(triton, tensors, grad, partition)
            for mine, theirs in zip(results, plain):
                torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-2 * theirs.abs().max())
    finally:
        matmul.fp32_precision = 'none'
    assert_equal(results, plain)


@pytest.fixture
def end_of_a_grid(monkeypatch):
    """Return a function that limits the interpreter to the last programs of a grid.

    Tensors that these programs do not access need no memory.
    """

    def keep(count):
        if not INTERPRETED:
            return
        from triton.runtime import interpreter

        def last_programs(*bounds):  # one number where it loops over a grid
            return builtins.range(*bounds)[-count:] if len(bounds) == 1 else builtins.range(*bounds)

        monkeypatch.setattr(interpreter, 'range', last_programs, raising=False)
        # On a CPU it would copy tensors onto themselves.
        monkeypatch.setattr(interpreter.GridExecutor, '_restore_args_dev', lambda *args: None)

    return keep


@kernels
def test_the_last_tokens_of_a_window_of_1024(end_of_a_grid):
    end_of_a_grid(1)
    tensors, _, partition = on_device(
        *case((32, 32), (32, 32), False, images=1, heads=1, dim=32, dtype=torch.float16)
    )
    with torch.no_grad():
        found = triton(*tensors, partition)[:, -1]
        expected = window_attention(*tensors, partition, backend='reference')[:, -1]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


# Windows of one block and of several blocks use different kernels; the latter are slow in the interpreter.
@kernels
@pytest.mark.parametrize(
    ('size', 'window'), [((5, 4), (4, 4)), ((9, 8) if INTERPRETED else (24, 20), (24, 24))]
)
def test_more_than_2_to_the_31_numbers(size, window, end_of_a_grid, monkeypatch):
    """Compare the last image of a batch whose offsets exceed 32 bits to the same image alone, forward and backward.

    In the interpreter only written memory is allocated.
    """
    if INTERPRETED:
        monkeypatch.setattr(backend, '_processors', lambda device: 2**24)  # a window per program
        end_of_a_grid(4)
    elif torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip('needs 20 GB of memory')
    (qkv, scale, table), grad, partition = on_device(
        *case(size, window, True, images=1, heads=1, dim=32, dtype=torch.float16)
    )
    images = 2**31 // qkv.numel() + 70
    assert images * qkv.numel() > 2**31
    new = torch.empty if INTERPRETED else torch.zeros
    try:
        many = new(images, *qkv.shape[1:], dtype=torch.float16, device=DEVICE)
        of_many = new(images, *grad.shape[1:], dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f'not enough memory: {error}')
    many[-1], of_many[-1] = qkv[0], grad[0]
    # Sums over all windows are too slow in the interpreter. The other images are zero and add zero.
    others = () if INTERPRETED else (scale.requires_grad_(), table.requires_grad_())
    out = triton(many.requires_grad_(), scale, table, partition)
    found, *sums = torch.autograd.grad(out, (many, *others), of_many)
    alone = triton(qkv.requires_grad_(), scale, table, partition)
    expected, *expected_sums = torch.autograd.grad(alone, (qkv, *others), grad)
    assert torch.equal(out[-1], alone[0])
    assert torch.equal(found[-1], expected[0])
    for mine, theirs in zip(sums, expected_sums):
        torch.testing.assert_close(mine, theirs)


@gpu
def test_more_windows_than_a_second_axis_of_a_grid_takes():
    """Test 70,225 windows; all of them equal those of a map with one row of windows."""
    size = (530, 530)
    (qkv, scale, table), grad, partition = on_device(
        *case(size, (2, 2), False, images=1, heads=1, dim=32, dtype=torch.float16)
    )
    row = WindowPartition.fit((2, 530), (2, 2), (0, 0))
    for name in ('triton', 'fused'):

        def attention(*args, name=name):
            return window_attention(*args, backend=name)

        whole = run(attention, (qkv, scale, table), grad, partition)
        last = run(attention, (qkv[:, -2:], scale, table), grad[:, -2:], row)
        for mine, theirs in zip(whole[:2], last[:2]):
            torch.testing.assert_close(mine[:, -2:], theirs, rtol=1e-3, atol=1e-3)


@gpu
@both_kinds
def test_on_a_stream_of_its_own(size, window):
    """Inputs are written late on the stream: a kernel on another stream would read old values."""
    tensors, grad, partition = on_device(*usual_case(size, window))
    plain = run(triton, tensors, grad, partition)
    late = [torch.zeros_like(x) for x in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles
        for x, value in zip(late, tensors):
            x.copy_(value)
        results = run(triton, late, grad, partition)
    stream.synchronize()
    assert_equal(results, plain)


@gpu
@both_kinds
def test_a_graph_replays_both_passes_with_new_inputs(size, window):
    tensors, grad, partition = on_device(*usual_case(size, window))
    others, other_grad, _ = on_device(*usual_case(size, window, seed=1))
    plain = run(triton, others, other_grad, partition)
    inputs = [x.clone().requires_grad_() for x in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(triton(*inputs, partition), inputs, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = triton(*inputs, partition)
        grads = torch.autograd.grad(out, inputs, grad)
    with torch.no_grad():
        for x, value in zip((*inputs, grad), (*others, other_grad)):
            x.copy_(value)
    graph.replay()
    assert_equal((out, *grads), plain)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@both_kinds
def test_on_a_second_gpu_that_is_not_the_current_one(size, window):
    tensors, grad, partition = usual_case(size, window)
    results = []
    for index in (0, 1):
        device = torch.device('cuda', index)
        with torch.cuda.device(0):
            results.append(run(triton, [x.to(device) for x in tensors], grad.to(device), partition))
    assert all(x.device.index == 1 for x in results[1])
    assert_equal([x.cpu() for x in results[1]], [x.cpu() for x in results[0]])


@gpu
@both_kinds
def test_nothing_waits_for_the_gpu(size, window):
    """A transfer to the host would raise an error."""
    tensors, grad, partition = on_device(*usual_case(size, window))
    run(triton, tensors, grad, partition)
    torch.cuda.set_sync_debug_mode('error')
    try:
        run(triton, tensors, grad, partition)
    finally:
        torch.cuda.set_sync_debug_mode('default')
