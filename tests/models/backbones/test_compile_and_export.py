"""Test the backbone with torch.compile, exporters, gradient checkpointing and autocast."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from swinv2_mm.models.backbones import SwinTransformerV2
from swinv2_mm.ops.private import is_exported as is_exporting

NANO = dict(embed_dims=16, depths=(2, 2), num_heads=(1, 2))


@pytest.fixture
def model(randomize):
    return randomize(SwinTransformerV2(NANO, window_size=4, out_indices=(0, 1))).eval()


@pytest.mark.parametrize('size', [(64, 64), (50, 71)])
def test_compiled_inference_is_one_graph_with_the_same_result(model, size):
    """`fullgraph=True` turns every graph break into an error."""
    x = torch.randn(2, 3, *size)
    torch._dynamo.reset()
    counter = CompileCounter()
    with torch.no_grad():
        expected = model(x)
        torch.compile(model, backend=counter, fullgraph=True)(x)
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
        for mine, theirs in zip(compiled(x), expected):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_compiled_training_step(model):
    model.train()
    x = torch.randn(1, 3, 40, 40)
    grads = []
    torch._dynamo.reset()
    for run in (model, torch.compile(model, backend='aot_eager')):
        model.zero_grad()
        sum(out.square().mean() for out in run(x)).backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, grad in grads[0].items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-4 * scale + 1e-7)


def test_exported_program_gives_the_same(model):
    x = torch.randn(1, 3, 50, 38)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        targets = {str(node.target) for node in program.graph.nodes}
        assert not [name for name in targets if 'swinv2_mm' in name]  # runs without this package
        for mine, theirs in zip(program.module()(x), model(x)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_onnx_runtime_gives_the_same(model, tmp_path):
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    x = torch.randn(1, 3, 50, 38)
    path = tmp_path / 'backbone.onnx'
    with torch.no_grad():
        expected = model(x)
        torch.onnx.export(model, (x,), str(path), input_names=['image'], dynamo=True)
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for mine, theirs in zip(session.run(None, {'image': x.numpy()}), expected):
        torch.testing.assert_close(torch.from_numpy(mine), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.*deprecated:FutureWarning')
def test_traced_model_gives_the_same_at_any_size(model):
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(2, 3, 50, 38))
        for size in ((1, 50, 38), (3, 64, 64), (1, 9, 71), (2, 3, 5), (1, 1, 1)):
            x = torch.randn(size[0], 3, *size[1:])
            for mine, theirs in zip(traced(x), model(x)):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend', ['auto', 'fused', 'reference'])
def test_checkpointing_and_autocast_keep_the_gradients(randomize, backend):
    grads = []
    for with_cp in (False, True):
        model = randomize(
            SwinTransformerV2(
                NANO,
                window_size=4,
                out_indices=(1,),
                with_cp=with_cp,
                drop_path_rate=0.0,
                attn_backend=backend,
            )
        ).train()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = model(torch.ones(1, 3, 50, 38).cumsum(2) / 25)[0].float().square().mean()
        loss.backward()
        grads.append([weight.grad for weight in model.parameters()])
    for mine, theirs in zip(*grads):
        assert torch.equal(mine, theirs)


def test_only_exported_programs_are_made_of_plain_operators():
    """torch 2.7 to 2.13 report exporting while compiling, which disabled kernels in compiled code."""

    class Asks(torch.nn.Module):
        def forward(self, x):
            return x + (1 if is_exporting() else 0)

    x = torch.zeros(1)
    torch._dynamo.reset()
    assert Asks()(x) == 0
    assert torch.compile(Asks(), backend='eager', fullgraph=True)(x) == 0
    assert torch.export.export(Asks(), (x,)).module()(x) == 1
