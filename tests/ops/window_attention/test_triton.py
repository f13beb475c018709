"""Compare the Triton kernels to the reference, on a GPU or in Triton's interpreter."""

import math

import pytest
import torch
from test_backends import TOLERANCES, case, check, run
from torch.utils.flop_counter import FlopCounterMode
from triton_runs import DEVICE, gpu, kernels, outside

from swinv2_mm.ops.window_attention import choose_backend, window_attention
from swinv2_mm.ops.window_attention import triton_backend as backend

CPU = torch.device('cpu')
# A window that fits into one block.
TILE_WINDOW = {torch.float16: (8, 8), torch.bfloat16: (7, 7), torch.float32: (5, 5)}
FP32_TENSORS = ('scale', 'table', 'lse', 'delta', 'grad_scale', 'grad_bias')


def triton(qkv, scale, table, partition):
    return window_attention(qkv, scale, table, partition, backend='triton')


def on_device(tensors, grad, partition):
    return [x.to(DEVICE) for x in tensors], grad.to(DEVICE), partition


@pytest.fixture
def small_blocks(monkeypatch):
    """Use several blocks in a small window, since the interpreter is slow."""
    monkeypatch.setattr(backend, 'BLOCK', 32)
    monkeypatch.setattr(backend, 'BLOCK_FP32', 32)
    for name in ('STEP', 'GRAD_STEP', 'STEP_FP32'):
        monkeypatch.setattr(backend, name, 16)


# Sizes with remainders on both axes, non-square windows, windows as large as the map along one axis or both, maps of
# complete windows, and windows with several blocks of tokens.
@kernels
@pytest.mark.parametrize(
    ('size', 'window', 'shifted', 'dim'),
    [
        ((7, 9), (4, 4), True, 32),
        ((8, 8), (4, 4), False, 16),
        ((6, 6), (3, 3), True, 16),  # four regions of real tokens in one window
        ((5, 11), (3, 5), True, 8),
        ((9, 4), (7, 2), True, 24),
        ((6, 7), (9, 3), True, 16),
        ((4, 6), (4, 8), False, 64),
        pytest.param((8, 10), (7, 6), True, 32, marks=pytest.mark.long),  # 27 s in the interpreter
        ((8, 9), (8, 4), True, 32),
    ],
)
def test_equals_the_reference(small_blocks, size, window, shifted, dim):
    tensors, grad, partition = on_device(*case(size, window, shifted, dim=dim))
    check(triton, tensors, grad, partition, torch.float32)


@kernels
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('size', 'window'), [((9, 10), (8, 6)), ((8, 8), (8, 8))])
def test_in_every_dtype(dtype, size, window):
    tensors, grad, partition = on_device(*case(size, window, True, dim=32, images=1, dtype=dtype))
    check(triton, tensors, grad, partition, dtype)


@kernels
def test_the_gradient_of_the_scale_does_not_see_that_outputs_are_rounded():
    """With cosines of one sign, errors in the mean gradient of a row accumulate."""
    (qkv, scale, table), grad, partition = case((4, 6), (4, 6), False, dtype=torch.float16)
    tensors, grad, partition = on_device((qkv + 2, scale, table), grad, partition)
    mine = run(triton, tensors, grad, partition)[2]
    exact = run(
        lambda *x: window_attention(*x, backend='reference'),
        [x.double() for x in tensors],
        grad.double(),
        partition,
    )[2]
    assert (mine - exact).abs().max() <= 1e-5 * exact.abs().max()


@kernels
def test_many_blocks_in_a_large_window():
    tensors, grad, partition = on_device(*case((12, 12), (12, 12), False, images=1, heads=1))
    check(triton, tensors, grad, partition, torch.float32)


@kernels
def test_windows_of_one_token():
    tensors, grad, partition = on_device(*case((3, 2), (1, 1), False))
    out, grad_qkv, grad_scale, grad_table = run(triton, tensors, grad, partition)
    values = tensors[0].chunk(3, dim=-1)[2]
    torch.testing.assert_close(out, values)
    torch.testing.assert_close(grad_qkv.chunk(3, dim=-1)[2], grad)
    for zero in (grad_qkv.chunk(3, dim=-1)[0], grad_scale, grad_table):
        assert zero.abs().max() < 1e-4


@kernels
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_zero_keys_at_loss_scale_65536(dtype):
    tensors, grad, partition = on_device(*case((6, 7), (4, 4), True, dim=16, dtype=dtype))
    tensors[0][:, 2:5] = 0
    loss = grad.sign() * (65536 / grad.numel())  # gradient of a mean
    out, grad_qkv, *others = run(triton, tensors, loss, partition)
    for value in (out, grad_qkv, *others):
        assert value.isfinite().all()
    grad_q, grad_k, _ = grad_qkv.chunk(3, dim=-1)
    assert not grad_q[:, 2:5].any() and not grad_k[:, 2:5].any()


@kernels
def test_gradients_of_logits_may_leave_the_range_of_fp16():
    tensors, grad, partition = on_device(*case((4, 4), (4, 4), False, dtype=torch.float16))
    tensors[0][..., :32] *= 256  # long queries and keys, whose gradients are small
    grad = grad * 8192
    tensors[0][..., 32:] *= 16
    tensors[1] = torch.ones_like(tensors[1])
    values = run(triton, tensors, grad, partition)
    exact = run(
        lambda *x: window_attention(*x, backend='reference'),
        [x.double() for x in tensors],
        grad.double(),
        partition,
    )
    for mine, theirs in zip(values[:2], exact[:2]):
        assert theirs.abs().max() < 65504
        error = (mine.double() - theirs).abs().max() / theirs.abs().max()
        assert error < TOLERANCES[torch.float16]


@kernels
def test_large_logits_and_biases():
    """Masked pairs have weight zero also for scores of 100 and more."""
    (qkv, scale, table), grad, partition = case((7, 7), (4, 3), True, dim=16)
    tensors, grad, partition = on_device((qkv, scale * 0 + 100, table * 100), grad, partition)
    results = run(triton, tensors, grad, partition)
    exact = run(
        lambda *x: window_attention(*x, backend='reference'),
        [x.double() for x in tensors],
        grad.double(),
        partition,
    )
    for mine, theirs in zip(results, exact):
        # The resolution of fp32 is 3e-5 for logits of several hundreds.
        assert (mine - theirs).abs().max() <= 1e-3 * theirs.abs().max()


@kernels
def test_qkv_that_is_not_contiguous_and_a_gradient_that_is_expanded():
    (qkv, scale, table), _, partition = on_device(*case((5, 6), (4, 4), True))
    qkv = qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not qkv.is_contiguous()
    results = []
    for name in ('triton', 'reference'):
        inputs = [x.detach().clone().requires_grad_() for x in (qkv, scale, table)]
        window_attention(*inputs, partition, backend=name).sum().backward()
        results.append([x.grad for x in inputs])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@kernels
def test_only_the_gradients_asked_for():
    (qkv, scale, table), grad, partition = on_device(*case((5, 6), (4, 4), True))
    whole = run(triton, (qkv, scale, table), grad, partition)
    frozen = qkv.detach().requires_grad_()
    triton(frozen, scale, table, partition).backward(grad)
    assert torch.equal(frozen.grad, whole[1])
    assert table.grad is None and scale.grad is None


@kernels
def test_the_same_in_every_run():
    tensors, grad, partition = on_device(*case((5, 6), (4, 4), True, images=3))
    for one, other in zip(*(run(triton, tensors, grad, partition) for _ in range(2))):
        assert torch.equal(one, other)


@kernels
def test_autocast_does_not_blur_the_scores():
    tensors, grad, partition = on_device(*case((5, 6), (4, 4), True))
    plain = run(triton, tensors, grad, partition)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        mixed = run(triton, tensors, grad, partition)
    for mine, theirs in zip(mixed, plain):
        assert torch.equal(mine, theirs)


@kernels
def test_an_empty_batch():
    tensors, grad, partition = on_device(*case((5, 6), (4, 4), True, images=0))
    out, grad_qkv, grad_scale, grad_table = run(triton, tensors, grad, partition)
    assert out.shape == grad.shape and grad_qkv.shape == tensors[0].shape
    assert not grad_scale.any() and not grad_table.any()


@kernels
def test_compiled_without_a_graph_break():
    tensors, grad, partition = on_device(*case((5, 6), (4, 4), True))

    def attention(qkv, scale, table, partition):
        return triton(qkv, scale, table, partition) + 0

    # The compiler does not trace the kernels; its code generation is not tested here.
    compiled = torch.compile(attention, fullgraph=True, backend='aot_eager')
    plain = run(triton, tensors, grad, partition)
    for mine, theirs in zip(run(compiled, tensors, grad, partition), plain):
        assert torch.equal(mine, theirs)


@kernels
def test_operators_keep_the_rules_of_torch():
    (qkv, scale, table), _, partition = on_device(*case((5, 6), (4, 4), True, images=1, heads=1))
    inputs = [x.requires_grad_() for x in (qkv, scale, table)]
    torch.library.opcheck(
        backend._attention,
        (*inputs, [*partition.window], [*partition.shift]),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'),
    )
    window, shift = [*partition.window], [*partition.shift]
    with torch.no_grad():
        out, lse = backend._attention(*inputs, window, shift)
        arguments = (torch.randn_like(out), *(x.detach() for x in inputs), out, lse, window, shift)
        for with_table in (True, False):  # compiled code relies on the strides of outputs
            torch.library.opcheck(
                backend._backward,
                (*arguments, with_table),
                test_utils=('test_schema', 'test_faketensor'),
            )


@kernels
def test_flops_are_those_of_the_reference():
    tensors, _, partition = on_device(*case((5, 6), (4, 4), True))
    counts = []
    for name in ('triton', 'reference'):
        inputs = [x.requires_grad_() for x in tensors]
        with FlopCounterMode(display=False) as counter:
            window_attention(*inputs, partition, backend=name).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@kernels
def test_shapes_that_do_not_fit_are_refused():
    (qkv, scale, table), _, partition = on_device(*case((5, 6), (4, 4), True))
    with pytest.raises(ValueError, match=r'not a map of 5 x 6 tokens'):
        triton(qkv[:, :4], scale, table, partition)
    with pytest.raises(ValueError, match=r'bias table \(2, 5, 7\).*the table is \(2, 7, 7\)'):
        triton(qkv, scale, table[:, 1:-1], partition)


@gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ('size', 'window', 'dim'),
    [((50, 75), (24, 24), 32), ((64, 64), (16, 16), 32), ((37, 61), (12, 9), 64), ((40, 33), (8, 8), 128)],
)  # fmt: skip
def test_windows_of_real_size(dtype, size, window, dim):
    tensors, grad, partition = on_device(*case(size, window, True, heads=4, dim=dim, dtype=dtype))
    check(triton, tensors, grad, partition, dtype)


@kernels
def test_auto_takes_it_on_a_gpu():
    assert (choose_backend('auto', DEVICE) == 'triton') == (DEVICE.type != 'cpu')
    assert choose_backend('auto', DEVICE, dropout_p=0.1) == 'reference'
    assert choose_backend('auto', DEVICE, dtype=torch.float64) == 'fused'
    assert choose_backend('auto', DEVICE, head_dim=160) == 'fused'
    assert choose_backend('triton', DEVICE) == 'triton'


@outside
@pytest.mark.parametrize(
    ('capability', 'dtype', 'large_window', 'dim'),
    [
        (80, torch.float16, (16, 16), 32),
        pytest.param(86, torch.float32, (12, 12), 32, marks=pytest.mark.long),
        pytest.param(90, torch.bfloat16, (9, 9), 64, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_kernels_compile_where_there_is_no_gpu(
    capability, dtype, large_window, dim, tmp_path, monkeypatch
):
    """The interpreter accepts code that the compiler rejects, and does not limit shared memory."""
    pytest.importorskip('triton', minversion='3.3')
    triton_compiler = pytest.importorskip('triton.compiler')
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    qkv = torch.empty(1, 20, 20, 6 * dim, dtype=dtype)
    short = {torch.float16: '*fp16', torch.float32: '*fp32', torch.bfloat16: '*bf16'}[dtype]
    for name in (
        'attention_kernel',
        'delta_kernel',
        'qkv_grad_kernel',
        'bias_grad_kernel',
        'tile_attention_kernel',
        'tile_grad_kernel',
    ):
        is_tile = name.startswith('tile')
        window = TILE_WINDOW[dtype] if is_tile else large_window
        launch = backend._Launch(qkv, 2, list(window), [3, 3], backward='grad' in name)
        assert (launch.blocks == 1) == is_tile
        given = {**launch.options, **launch.products, 'WIDE': launch.wide, 'STEP': launch.step}
        kernel = getattr(backend._kernels()[is_tile], name)
        signature = dict.fromkeys(kernel.arg_names, 'i32')
        constants = {key: given[key] for key in kernel.arg_names if key in given}
        signature |= dict.fromkeys(constants, 'constexpr')
        for key in ('qkv', 'out', 'grad', 'grad_qkv'):
            signature |= {key: short} if key in signature else {}
        for key in FP32_TENSORS:
            signature |= {key: '*fp32'} if key in signature else {}
        source = triton_compiler.ASTSource(kernel, signature, constants)
        options = {key: launch.options[key] for key in ('num_warps', 'num_stages')}
        compiled = triton_compiler.compile(source, GPUTarget('cuda', capability, 32), options)
        # Limit of shared memory on GPUs of capability 8.6 and 8.9, which have least.
        assert 0 < compiled.metadata.shared <= 99 * 1024
        assert compiled.asm['cubin']


@outside
@pytest.mark.parametrize('tokens', [1, 16, 25, 49, 64, 81, 144, 256, 576])
def test_blocks_fit_the_window(tokens):
    for dtype, most in ((torch.float16, backend.BLOCK), (torch.float32, backend.BLOCK_FP32)):
        block = backend._block(tokens, dtype)
        assert 16 <= block <= most and math.log2(block).is_integer()
        assert tokens < 16 or -(-tokens // block) * block < 2 * tokens
