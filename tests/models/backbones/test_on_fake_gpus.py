"""Test the backbone on fake tensors of a GPU: devices are not mixed, and no value is read back."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch._dynamo.testing
from test_on_gpus import (  # noqa: F401  a fixture
    NANO,
    OPTIONS,
    assert_close,
    build,
    loss_of,
    step,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton_runs import outside

from swinv2_mm.models.backbones import SwinTransformerV2
from swinv2_mm.models.layers.attention import EvalCache
from swinv2_mm.models.layers.position_bias import PositionBias
from swinv2_mm.ops import execution
from swinv2_mm.ops.window_attention.fused import MOST_WINDOWS_GPU, windows_per_chunk


@outside
def test_a_cache_of_another_device_is_not_used():
    cache, made = EvalCache(), []

    def value(device):
        made.append(device)
        return torch.zeros(1, device=device)

    for device in ('cpu', 'meta', 'cpu'):
        weights = [torch.ones(2, device=device)]
        for _ in range(2):
            # Weights on the meta device cannot be compared, so every call is a cache miss.
            assert cache.get('key', weights, lambda: value(device)).device.type == device  # noqa: B023
            if device == 'meta':
                break
    assert made == ['cpu', 'meta', 'cpu']


@outside
def test_what_inference_mode_left_behind_does_not_stop_training(build):  # noqa: F811
    model, other = build(), build()
    x = torch.randn(1, 3, 40, 40)
    weights = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        before = model.eval()(x)
        model.update_resolution(8)
        model.update_resolution(4)
        model.load_state_dict(weights)
    other.load_state_dict(weights)
    _, found = step(model.train(), x)
    _, expected = step(other.train(), x)
    assert_close(found, expected)
    with torch.no_grad():
        for mine, theirs in zip(model.eval()(x), before):
            torch.testing.assert_close(mine, theirs)
            assert not mine.is_inference()


def on_fake(device, **options):
    """Build a backbone with fake parameters on a device. Call it under `FakeTensorMode`."""
    with torch.device('meta'):
        model = SwinTransformerV2(NANO, **{**OPTIONS, **options})
    for module in reversed([*model.modules()]):
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(weight, device=device))
        if isinstance(module, PositionBias):
            module.rebuild_derived()
    return model


class Seen(TorchDispatchMode):
    """Record dtypes and devices of inputs and outputs of the attention operator."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.swinv2_mm.window_attention.default:
            tensors = (*args[:3], *out)
            self.calls.append(([x.dtype for x in tensors], {str(x.device) for x in tensors}))
        return out


@contextmanager
def autocast_on_cuda(dtype):
    """Return `torch.autocast('cuda')`, which is disabled without a GPU."""
    torch.set_autocast_enabled('cuda', dtype is not None)
    before = torch.get_autocast_dtype('cuda')
    torch.set_autocast_dtype('cuda', dtype or before)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.set_autocast_dtype('cuda', before)
        torch.clear_autocast_cache()


@outside
@pytest.mark.parametrize(
    ('backend', 'dtype'),
    [('auto', None), ('auto', torch.float16), ('auto', torch.bfloat16), ('fused', torch.float16)],
)
def test_a_forward_pass_reads_nothing_back_and_stays_on_its_device(monkeypatch, backend, dtype):
    """Reading a value or mixing devices raises an error here; `cuda:0` is the current device.

    Under autocast the kernel gets queries, keys and values in half precision, scale and table in fp32.
    """
    monkeypatch.setattr(execution, 'why_not_triton_on', lambda device: None)
    device = 'cuda:1'
    for training in (False, True):
        with FakeTensorMode(), torch.set_grad_enabled(training):
            model = on_fake(device, attn_backend=backend, drop_path_rate=0.2).train(training)
            x = torch.empty(2, 3, 50, 71, device=device)
            with autocast_on_cuda(dtype), Seen() as seen:
                outs = model(x)
        assert {str(out.device) for out in outs} == {device}
        assert [tuple(out.shape) for out in outs] == [(2, 32, 13, 18), (2, 64, 7, 9)]
        assert all(out.dtype == torch.float32 for out in outs)  # of the LayerNorm
        assert len(seen.calls) == (3 if backend == 'auto' else 0)
        half, exact = dtype or torch.float32, torch.float32
        for dtypes, devices in seen.calls:
            assert dtypes == [half, exact, exact, half, exact]
            assert devices == {device}


@outside
@pytest.mark.parametrize(('backend', 'with_cp'), [('triton', True), ('fused', False)])
def test_a_training_step_reads_nothing_back(monkeypatch, backend, with_cp):
    """Without a GPU torch cannot run this backward pass, but its operators are the same."""
    monkeypatch.setattr(execution, 'why_not_triton_on', lambda device: None)
    with FakeTensorMode():
        model = on_fake('cpu', attn_backend=backend, with_cp=with_cp, out_indices=(0,))
        loss_of(model, torch.empty(2, 3, 50, 71)).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.dtype == weight.dtype and weight.grad.shape == weight.shape


@outside
def test_chunks_of_the_fused_backend_fit_an_axis_of_a_grid():
    """Torch's kernels limit the number of windows of a chunk to 65,535."""
    assert MOST_WINDOWS_GPU == 65535
    for bytes_per_window in (1, 10, 10**4):
        assert windows_per_chunk(bytes_per_window, torch.device('cuda')) <= MOST_WINDOWS_GPU
