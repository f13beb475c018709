"""Test results and memory under modes, transforms, higher derivatives and missing threads."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from small_backbones import BACKBONES, IMAGE, build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from swinv2_mm.ops.execution import runs_as_made, takes_onednn
from swinv2_mm.ops.linear import linear


@pytest.fixture(params=list(BACKBONES))
def model(request, randomize):
    return randomize(build(request.param)).eval()


@pytest.mark.parametrize('backend', ['auto', 'fused', 'reference'])
def test_fake_tensors_leave_nothing_behind(randomize, backend):
    model, x = randomize(build(attn_backend=backend)).eval(), torch.randn(IMAGE)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            outs = model(mode.from_tensor(x))
        assert [out.shape for out in outs] == [out.shape for out in fresh(x)]
        torch.testing.assert_close(model(x), fresh(x))


@pytest.mark.parametrize('kind', list(BACKBONES))
@pytest.mark.parametrize('grad', [True, False])
def test_meta_tensors(kind, grad):
    with torch.device('meta'):
        model = build(kind)
    with torch.set_grad_enabled(grad):
        outs = model(torch.empty(IMAGE, device='meta'))
    assert [tuple(out.shape) for out in outs] == [(1, 16, 9, 13), (1, 32, 5, 7)]


@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_forward_mode_keeps_the_tangent(randomize, backend):
    model = randomize(build(attn_backend=backend)).double().eval()
    x, tangent = torch.randn(IMAGE).double(), torch.randn(IMAGE).double()

    def total(images):
        return sum(out.square().sum() for out in model(images))

    step = 1e-5
    expected = (total(x + step * tangent) - total(x - step * tangent)) / (2 * step)
    for image in (x, x.clone().requires_grad_()):
        with (
            torch.no_grad() if not image.requires_grad else torch.enable_grad(),
            forward_ad.dual_level(),
        ):
            found = forward_ad.unpack_dual(total(forward_ad.make_dual(image, tangent))).tangent
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.func.jvp(total, (x,), (tangent,))[1], expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize('grad', [True, False])
def test_vmap(model, grad):
    x = torch.randn(3, *IMAGE)
    with torch.set_grad_enabled(grad):
        found = torch.vmap(model)(x)
    for index, images in enumerate(x):
        torch.testing.assert_close(
            [out[index] for out in found], list(model(images)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_double_backward(randomize, backend, dtype):
    """Compare the gradient of a gradient penalty to the reference."""
    model = randomize(build(attn_backend=backend, out_indices=(0,))).to(dtype)
    reference = copy.deepcopy(model)
    for block in reference.layers[0].blocks:
        block.attn.backend = 'reference'
    found = []
    for net in (model, reference):
        x = torch.linspace(-1, 1, 3 * 20 * 28, dtype=dtype).view(1, 3, 20, 28).requires_grad_()
        (of_x,) = torch.autograd.grad(net(x)[0].square().sum(), x, create_graph=True)
        of_x.square().sum().backward()
        found.append(
            [x.grad, *(weight.grad for weight in net.parameters() if weight.grad is not None)]
        )
    assert len(found[0]) == len(found[1]) > 20
    for mine, theirs in zip(*found):
        error = (mine - theirs).norm() / theirs.norm().clamp(min=1e-9)
        assert error < (1e-9 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_forward_mode_through_a_backward_pass(randomize, backend):
    """The forward pass comes before the dual level."""
    model = randomize(build(attn_backend=backend, out_indices=(0,)))
    found = []
    for name in (backend, 'reference'):
        for block in model.layers[0].blocks:
            block.attn.backend = name
        x = torch.linspace(-1, 1, 3 * 20 * 28).view(1, 3, 20, 28).requires_grad_()
        out = model(x)[0]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(
                torch.ones_like(out), torch.linspace(0, 1, out.numel()).view_as(out)
            )
            found.append(forward_ad.unpack_dual(torch.autograd.grad(out, x, dual)[0]).tangent)
    assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()


@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_a_gradient_penalty_with_activation_checkpointing(randomize, backend):
    found = []
    for with_cp in (True, False):
        model = randomize(build(attn_backend=backend, out_indices=(0,), with_cp=with_cp)).double()
        x = torch.linspace(-1, 1, 3 * 20 * 28).double().view(1, 3, 20, 28).requires_grad_()
        (of_x,) = torch.autograd.grad(model(x)[0].square().sum(), x, create_graph=True)
        of_x.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('backend', ['auto', 'fused'])
def test_batched_gradients(randomize, backend):
    model = randomize(build(attn_backend=backend, out_indices=(0,)))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    out = model(x)[0]
    rows = torch.eye(out.numel())[:3].view(3, *out.shape)
    (found,) = torch.autograd.grad(out, x, rows, is_grads_batched=True, retain_graph=True)
    for row, mine in zip(rows, found):
        (theirs,) = torch.autograd.grad(out, x, row, retain_graph=True)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_second_derivatives_by_functions(randomize):
    model = randomize(build(out_indices=(0,))).double().eval()
    x, direction = torch.randn(1, 3, 12, 12).double(), torch.randn(1, 3, 12, 12).double()

    def total(images):
        return model(images)[0].square().sum()

    found = torch.func.jvp(torch.func.grad(total), (x,), (direction,))[1]
    step = 1e-5
    expected = torch.func.grad(total)(x + step * direction) - torch.func.grad(total)(
        x - step * direction
    )
    torch.testing.assert_close(found, expected / (2 * step), rtol=1e-5, atol=1e-4)


def test_a_function_mode_sees_the_layers(randomize):
    class Names(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(getattr(function, '__name__', ''))
            return function(*args, **(kwargs or {}))

    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    with torch.no_grad(), Names() as mode:
        model(x)
    assert mode.names.count('layer_norm') == sum(
        isinstance(m, nn.LayerNorm) for m in model.modules()
    )
    with torch.no_grad(), torch.device('cpu'):  # a default device observes nothing
        assert runs_as_made(model.layers[0].blocks[0])
        assert takes_onednn(x, x) == takes_onednn(x, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    'environment',
    [
        {'OMP_THREAD_LIMIT': '1'},
        pytest.param({'OMP_DYNAMIC': 'true'}, marks=pytest.mark.long),
        pytest.param({'OMP_MAX_ACTIVE_LEVELS': '0'}, marks=pytest.mark.long),
    ],
)
def test_fewer_threads_than_torch_counts_on(environment, tmp_path):
    """Results equal those of one thread. oneDNN omits the work of threads that OpenMP does not start."""
    code = (
        'import sys, torch\n'
        'from swinv2_mm import SwinTransformerV2\n'
        'from swinv2_mm.ops.execution import takes_onednn\n'
        'torch.manual_seed(0)\n'
        'model = SwinTransformerV2(dict(embed_dims=32, depths=(2,), num_heads=(1,)), out_indices=(0,), init_cfg=None)\n'
        'for weight in model.parameters():\n'
        '    torch.nn.init.normal_(weight, std=0.1)\n'
        'x = torch.randn(1, 3, 200, 200)\n'
        'out = model.eval()(x)[0]\n'
        'out.square().mean().backward()\n'
        'with torch.no_grad():\n'
        '    fast = model(x)[0]\n'
        '    print(torch.get_num_threads(), takes_onednn(x, x))\n'
        'results = [fast, out.detach(), *(weight.grad for weight in model.parameters())]\n'
        'torch.save(results, sys.argv[1])\n'
    )
    found = []
    for index, extra in enumerate(
        ({'OMP_NUM_THREADS': '1'}, {'OMP_NUM_THREADS': '2', **environment})
    ):
        file = tmp_path / f'{index}.pt'
        done = subprocess.run(
            [sys.executable, '-c', code, str(file)],
            env={**os.environ, **extra}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(torch.load(file, weights_only=True))
    assert done.stdout.split() == ['2', 'False']
    for one, fewer in zip(*found):
        assert fewer.isfinite().all()
        torch.testing.assert_close(fewer, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()) + 1e-9)


@pytest.mark.parametrize(
    'calls',
    [pytest.param(60, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.long)],
)
def test_memory_stays_bounded_at_random_sizes(calls):
    code = (
        'import os, random, sys, torch\n'
        'from swinv2_mm import SwinTransformerV2\n'
        'def resident():\n'
        '    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20\n'
        'model = SwinTransformerV2(dict(embed_dims=48, depths=(2, 2), num_heads=(2, 4)), out_indices=(0, 1)).eval()\n'
        'draw, seen, calls = random.Random(0), [], int(sys.argv[1])\n'
        'files = len(os.listdir("/proc/self/fd"))\n'
        'with torch.inference_mode():\n'
        '    for call in range(calls):\n'
        '        model(torch.zeros(1, 3, draw.randint(32, 900), draw.randint(32, 900)))\n'
        '        seen.append(resident())\n'
        'print(min(seen[5:20]), max(seen[20:calls * 2 // 3]), max(seen[calls * 2 // 3:]))\n'
        'print(len(os.listdir("/proc/self/fd")) - files)\n'
    )
    command = [sys.executable, '-c', code, str(calls)]
    # oneDNN keeps 1,024 products by shape, up to half a gigabyte, which takes hundreds of calls.
    environment = {**os.environ, 'ONEDNN_PRIMITIVE_CACHE_CAPACITY': '128'}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    first, middle, last, files = map(int, out.stdout.split())
    assert files <= 0
    assert last < first + 400, out.stdout
    assert last < 1.1 * middle, out.stdout


def test_linear_layers_differentiate_twice():
    x = torch.randn(2, 8, 9, 32, requires_grad=True)
    weight, bias = torch.randn(48, 32, requires_grad=True), torch.randn(48, requires_grad=True)
    found = []
    for function in (linear, F.linear):
        grads = torch.autograd.grad(
            function(x, weight, bias).square().sum(), (x, weight, bias), create_graph=True
        )
        found.append(
            torch.autograd.grad(sum(grad.square().sum() for grad in grads), (x, weight, bias))
        )
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)


def test_a_frozen_linear_layer_keeps_its_weight_only():
    x, weight = torch.randn(2, 9, 9, 32, requires_grad=True), torch.randn(48, 32)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        out = linear(x, weight)
    assert sum(sizes) == weight.numel()
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(F.linear(x, weight).sum(), x)[0],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
