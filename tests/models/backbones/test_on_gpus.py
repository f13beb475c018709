"""Test the backbone on GPUs: moves, autocast, channels last, DDP, graphs, the compiler.

Without a GPU, fake tensors show whether devices are mixed and whether a value would be read back.
`test_kernels_in_the_interpreter.py` runs this file in Triton's interpreter as well.
"""

import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch.nn.parallel import DistributedDataParallel
from triton_runs import gpu, only_interpreted, outside

from swinv2_mm.models.backbones import SwinTransformerV2

# 32 channels per head, as in all published models, so that few kernels are compiled.
NANO = dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2))
OPTIONS = dict(window_size=4, out_indices=(0, 1), drop_path_rate=0.0)


@pytest.fixture
def build(randomize):
    def build(arch=NANO, **options):
        return randomize(SwinTransformerV2(arch, **{**OPTIONS, **options}))

    return build


def loss_of(model, x):
    return sum(out.float().square().mean() for out in model(x))


def step(model, x):
    """Return the loss and the gradients of all parameters that have one."""
    model.zero_grad()
    loss = loss_of(model, x)
    loss.backward()
    grads = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    return loss.detach(), grads


def assert_close(found, expected, tolerance=1e-4):
    """Return the largest relative difference of every tensor."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        mine = found[name].to(theirs)
        floor = 1e-3 if 'logit_scale' in name else 1e-6
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=floor), name


@only_interpreted
def test_compiled_around_the_kernel_in_one_graph(build):
    """Run a training step at two sizes, without recompilation for the second."""
    model = build(NANO | dict(depths=(1,), num_heads=(1,)), out_indices=(0,), attn_backend='triton')
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(model.train(), backend=counter, fullgraph=True, dynamic=True)
    for size in ((24, 20), (20, 28)):
        x = torch.randn(1, 3, *size)
        assert_close(step(compiled, x)[1], step_of_original(model, x))
    graphs = [[str(node.target) for node in graph.graph.nodes] for graph in counter.graphs]
    (calls,) = filter(None, graphs)
    assert sum('window_attention' in call for call in calls) == 1


def step_of_original(model, x):
    """Return gradients by the parameter names of a compiled model."""
    return {f'_orig_mod.{name}': grad for name, grad in step(model, x)[1].items()}


SETTINGS = {
    'recomputed': (dict(with_cp=True), dict(gradient_as_bucket_view=True)),
    'static graph': (dict(), dict(static_graph=True)),
    'frozen stages': (dict(frozen_stages=1), dict()),
    'one output': (dict(out_indices=(0,)), dict()),
}
"""Options of the backbone and of DDP, without `find_unused_parameters`."""


def train_in_parallel(place, device, rank, world):
    """Run two steps in each setting; every process has a part of the batch.

    Returns:
        The gradients of the last step.
    """
    torch.distributed.init_process_group(
        'nccl' if device == 'cuda' else 'gloo',
        init_method=f'file://{place}/meeting',
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=100),
    )
    models, images = torch.load(place / 'given.pt', map_location=device, weights_only=False)
    found = {}
    for name, (_, options) in SETTINGS.items():
        parallel = DistributedDataParallel(models[name], find_unused_parameters=False, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings('error', message='.*[Ss]tride')  # a copy of every gradient
            for batch in images:
                _, grads = step(parallel, batch.chunk(world)[rank])
        found[name] = {key.removeprefix('module.'): grad for key, grad in grads.items()}
    torch.distributed.destroy_process_group()
    return found


def compare_with_ddp(build, place, device, world):
    """Compare the gradients of DDP to those of the backbone alone, in one process of the group."""
    models = {name: build(**options).train() for name, (options, _) in SETTINGS.items()}
    images = torch.randn(2, 2, 3, 40, 36)
    torch.save((models, images), place / 'given.pt')
    command = [sys.executable, __file__, str(place), device]
    tests = str(Path(__file__).parents[2])  # imports of this file, as under pytest
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([tests, *sys.path])}
    children = [
        subprocess.Popen(
            [*command, str(rank), str(world)], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(1, world)
    ]
    found = train_in_parallel(place, device, 0, world)
    errors = [child.communicate(timeout=100)[1] for child in children]
    assert not any(child.returncode for child in children), errors
    for name, model in models.items():
        _, expected = step(model.to(device), images[-1].to(device))
        assert_close(found[name], expected, 1e-4 if device == 'cpu' else 1e-2)
        frozen = {key for key, weight in model.named_parameters() if not weight.requires_grad}
        assert bool(frozen) == (name == 'frozen stages') and not frozen & found[name].keys()


@outside
def test_two_processes_get_the_gradients_of_one(build, tmp_path):
    compare_with_ddp(build, tmp_path, 'cpu', 2)


@outside
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scaled_losses_give_finite_gradients(build, dtype):
    scaled_step(build(), 'cpu', dtype)


def scaled_step(model, device, dtype):
    """Run a mixed-precision step as in mmengine's `AmpOptimWrapper`."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    x = torch.randn(2, 3, 40, 36, device=device)
    before = [weight.detach().clone() for weight in model.parameters()]
    _, exact = step(model, x)
    model.zero_grad()
    with torch.autocast(device, dtype=dtype):
        loss = loss_of(model, x)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, weight in model.named_parameters():
        assert weight.grad.dtype == torch.float32 and weight.grad.isfinite().all(), name
        if 'logit_scale' not in name:
            error = (weight.grad - exact[name]).norm() / exact[name].norm().clamp(min=1e-4)
            assert error < (0.1 if dtype == torch.bfloat16 else 0.02), name
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == (65536 if dtype == torch.float16 else 1)
    assert not any(torch.equal(*pair) for pair in zip(model.parameters(), before))


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def exact():
    """Disable tf32, which torch allows for convolutions by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@gpu
def test_moved_there_and_back(build, exact):
    """Move after inference on a CPU, which caches biases, and train after inference mode."""
    model = build().eval()
    x = torch.randn(2, 3, 50, 38)
    with torch.inference_mode():
        expected = model(x)
    model.cuda()
    assert all(x.is_cuda for x in (*model.parameters(), *model.buffers()))
    with torch.inference_mode():
        for mine, theirs in zip(model(x.cuda()), expected):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)
    _, found = step(model.train(), x.cuda())
    _, wanted = step(model.cpu(), x)
    assert_close(found, wanted, 1e-3)
    with torch.no_grad():
        for mine, theirs in zip(model.eval()(x), expected):
            assert torch.equal(mine, theirs)


@gpu
def test_channels_last_changes_nothing(build, exact):
    model = build().cuda().train()
    x = torch.randn(2, 3, 50, 38, device='cuda')
    _, expected = step(model, x)
    model.to(memory_format=torch.channels_last)
    for image in (
        x.contiguous(memory_format=torch.channels_last),
        x.flip(3).flip(3),
        x[:, [2, 1, 0]][:, [2, 1, 0]],
    ):
        _, found = step(model, image)
        assert_close(found, expected)


@gpu
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_scaled_losses_give_finite_gradients_there(build, dtype):
    scaled_step(build(), 'cuda', dtype)


@gpu
@pytest.mark.parametrize('with_cp', [False, True])
def test_a_training_step_waits_for_nothing(build, with_cp):
    model = build(with_cp=with_cp, drop_path_rate=0.2).cuda().train()
    x = torch.randn(2, 3, 40, 36, device='cuda')
    step(model, x)
    torch.cuda.set_sync_debug_mode('error')
    try:
        step(model, x)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@gpu
def test_deterministic_algorithms_need_no_exception(build):
    """Torch warns about operators without a deterministic version; for cuBLAS, about an environment variable."""
    model = build().cuda().train()
    x = torch.randn(2, 3, 40, 36, device='cuda')
    step(model, x)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            runs = [step(model, x)[1] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    others = [str(w.message) for w in caught if 'CUBLAS' not in str(w.message).upper()]
    assert not [message for message in others if 'determinis' in message], others
    for name, grad in runs[0].items():
        assert torch.equal(grad, runs[1][name]), name


@gpu
def test_a_graph_replays_inference_with_new_images(build):
    model = build().cuda().eval()
    image, other = torch.randn(2, 2, 3, 40, 36, device='cuda')
    with torch.no_grad():
        expected = model(other)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(image)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs = model(image)
        image.copy_(other)
        graph.replay()
    for mine, theirs in zip(outs, expected):
        torch.testing.assert_close(mine, theirs)


@gpu
def test_compiled_by_inductor_it_trains_alike(build, exact):
    model = build(NANO | dict(depths=(2,), num_heads=(1,)), out_indices=(0,)).cuda().train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(2, 3, 40, 36, device='cuda')
    assert_close(step(compiled, x)[1], step_of_original(model, x), 1e-3)


@gpu
def test_one_process_of_nccl_gets_the_same_gradients(build, tmp_path, exact):
    compare_with_ddp(build, tmp_path, 'cuda', 1)


if __name__ == '__main__':
    train_in_parallel(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
