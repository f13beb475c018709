"""Test that hooks and replaced modules disable shortcuts."""

import copy
from functools import partial

import pytest
import torch
from small_backbones import BACKBONES, IMAGE, build
from torch import nn

from swinv2_mm.models.layers import SwinBlock, bands
from swinv2_mm.ops.execution import runs_as_made


@pytest.fixture(params=list(BACKBONES))
def model(request, randomize):
    return randomize(build(request.param)).eval()


def plain(model):
    """Run the same network without shortcuts."""
    found = copy.deepcopy(model)
    for block in found.modules():
        if isinstance(block, SwinBlock):
            block.attn.backend = 'reference'
    found.register_forward_pre_hook(lambda *_: None)
    for part in found.modules():
        part.register_forward_hook(lambda *_: None)
    return found


MODES = {
    'train': (True, torch.enable_grad),
    'eval': (False, torch.enable_grad),
    'no_grad': (False, torch.no_grad),
    'inference_mode': (False, torch.inference_mode),
}


def leaves(model):
    return [
        name for name, part in model.named_modules() if name and not isinstance(part, nn.ModuleList)
    ]


def keep(found, name, module, args, *out):
    """Record first argument and output of each call; a block calls its stochastic depth twice."""
    found.setdefault(name, []).extend((args[0], *out))


@pytest.mark.parametrize('mode', list(MODES))
def test_a_hook_on_any_module_sees_and_keeps_what_the_plain_network_computes(model, mode):
    training, context = MODES[mode]
    x = torch.randn(IMAGE)
    everything, expected = plain(model).train(training), {}
    for name in leaves(model):
        part = everything.get_submodule(name)
        part.register_forward_hook(partial(keep, expected, name))
    with context():
        outs = everything(x)
        for name in leaves(model):
            seen, part = {}, model.train(training).get_submodule(name)
            before = part.register_forward_pre_hook(partial(keep, seen, 'before'))
            after = part.register_forward_hook(partial(keep, seen, name))
            torch.testing.assert_close(model(x), outs, rtol=1e-4, atol=1e-4)
            before.remove()
            after.remove()
            assert seen['before'][0] is seen[name][0]
            assert len(seen[name]) == len(expected[name])
            for got, wanted in zip(seen[name], expected[name]):  # a position bias takes a window
                if isinstance(got, torch.Tensor):
                    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=name)


def keep_gradient(found, name, module, of_in, of_out):
    found.setdefault(name, []).append(of_out[0])


def test_a_backward_hook_on_any_module_fires(model):
    x = torch.randn(IMAGE)
    expected = {}
    everything = plain(model)
    for name in leaves(model):
        everything.get_submodule(name).register_full_backward_hook(
            partial(keep_gradient, expected, name)
        )
    sum(out.square().sum() for out in everything(x)).backward()
    for name in leaves(model):
        seen, hook = {}, model.get_submodule(name).register_full_backward_hook
        handle = hook(partial(keep_gradient, seen, name))
        sum(out.square().sum() for out in model(x)).backward()
        handle.remove()
        assert len(seen[name]) == len(expected[name])
        for got, wanted in zip(seen[name], expected[name]):
            assert (got - wanted).norm() < 1e-3 * wanted.norm().clamp(min=1e-3), name


def test_a_global_hook_sees_every_module(model):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(part))
    try:
        with torch.no_grad():
            model(torch.randn(IMAGE))
    finally:
        handle.remove()
    missing = {model.get_submodule(name) for name in leaves(model)} - set(seen)
    assert not missing


class Adapter(nn.Module):
    """A parallel bottleneck, as in adapters and LoRA."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base, (out, width) = base, base.weight.shape
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


LINEARS = ['attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2']


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('name', LINEARS)
def test_what_stands_in_the_place_of_a_linear_layer_is_called(model, name, grad):
    """Results equal those of weights merged into the layer."""
    x = torch.randn(IMAGE)
    merged, block = copy.deepcopy(model), model.layers[0].blocks[1]
    adapter = Adapter(block.get_submodule(name))
    block.set_submodule(name, adapter)
    layer = merged.layers[0].blocks[1].get_submodule(name)
    with torch.no_grad():
        layer.weight += adapter.up.weight @ adapter.down.weight
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(x), merged(x), rtol=1e-4, atol=1e-4)
    if grad:
        sum(out.sum() for out in model(x)).backward()
        assert adapter.up.weight.grad.abs().max() > 0


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('name', [*LINEARS, 'attn.cpb_mlp.2'])
def test_parametrised_layers(randomize, name, grad):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        model(x)  # biases are cached before the change
        doubled.layers[0].blocks[0].get_submodule(name).weight *= 2
    part = model.layers[0].blocks[0].get_submodule(name)
    torch.nn.utils.parametrize.register_parametrization(part, 'weight', Double())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(x), doubled(x), rtol=1e-4, atol=1e-4)


def test_dynamic_quantisation_reaches_every_linear_layer(randomize):
    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    with torch.no_grad():
        model(x)
    with pytest.warns(DeprecationWarning):
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(part) is nn.Linear for part in quantised.modules())
    with torch.no_grad():
        for mine, exact in zip(quantised(x), model(x)):
            assert 0 < (mine - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(
    'name', ['attn', 'attn.proj_drop', 'mlp', 'mlp.act', 'mlp.drop1', 'drop_path', 'norm1', 'norm2']
)
def test_what_stands_in_the_place_of_any_other_part_is_called(model, name):
    class Replacement(nn.Module):
        def forward(self, x, *_):
            return 0.5 * x.roll(1, dims=1)  # reads outside of its band

    x = torch.randn(IMAGE)
    model.layers[0].blocks[1].set_submodule(name, Replacement())
    with torch.no_grad():
        mine = model(x)
    torch.testing.assert_close(mine, plain(model)(x), rtol=1e-4, atol=1e-4)
    assert not runs_as_made(model.layers[0].blocks[1])


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('where', ['first', 'last'])
def test_blocks_that_take_one_argument(randomize, where, with_cp):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = None

        def forward(self, x):
            self.seen = x
            return x * 1.5

    model = randomize(build(with_cp=with_cp)).eval()
    stage = model.layers[0].blocks
    stage.insert(0, nn.Identity())
    stage.insert(0 if where == 'first' else 3, Scale())
    x = torch.randn(IMAGE)
    with torch.no_grad():
        mine = model(x)
        kept = next(part for part in stage if isinstance(part, Scale)).seen
        before = kept.clone()
        model(x)
    assert torch.equal(kept, before)
    torch.testing.assert_close(mine, model(x), rtol=1e-4, atol=1e-4)


def test_a_wrapped_and_a_compiled_submodule(randomize):
    model, x, calls = randomize(build()).eval(), torch.randn(IMAGE), []
    expected = plain(model)(x)
    layer = model.layers[0].blocks[0].mlp.fc2
    inner = layer.forward
    layer.forward = lambda given: calls.append(1) or inner(given)  # as in accelerate
    compiled = model.layers[1].blocks[0].mlp.fc1
    compiled.compile(backend=lambda graph, _: calls.append(2) or graph.forward)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert set(calls) == {1, 2}


def norm_of_another_shape(model):
    model.layers[0].blocks[0].norm1 = nn.LayerNorm(8)


def narrow_projection(model):
    model.layers[0].blocks[0].attn.proj = nn.Linear(16, 8)


def window_without_its_bias(model):
    model.layers[0].blocks[0].window_size = (8, 8)


def one_head_too_few(model):
    attn = model.layers[0].blocks[0].attn
    attn.logit_scale = nn.Parameter(attn.logit_scale[:1].detach())


@pytest.mark.parametrize(
    'change', [norm_of_another_shape, narrow_projection, window_without_its_bias, one_head_too_few]
)
def test_parts_that_do_not_fit_raise(change, randomize):
    """A kernel would read beyond the end of them."""
    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    with torch.no_grad():
        model(x)  # biases are kept
        change(model)
        with pytest.raises((ValueError, RuntimeError)):
            model(x)


def test_an_overlapping_patch_convolution_sees_the_whole_image(randomize, monkeypatch):
    model = randomize(build()).eval()
    model.patch_embed.proj = nn.Conv2d(3, 16, 7, stride=4, padding=3)
    x = torch.randn(1, 3, 64, 96)
    expected = plain(model)(x)
    monkeypatch.setattr(bands, 'BAND_NUMBERS', 512)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_with_gaps(randomize):
    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    gaps = {
        name: torch.stack((weight, torch.full_like(weight, 9.0)), -1)[..., 0]
        for name, weight in model.named_parameters()
    }
    with torch.no_grad():
        found = torch.func.functional_call(model, gaps, (x,))
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


def test_methods_and_weights_that_an_instance_replaces(randomize):
    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    with torch.no_grad():
        model(x)
        mlp = model.layers[0].blocks[0].attn.cpb_mlp
        squash = mlp.squash
        mlp.squash = lambda table: 0.5 * squash(table)
        weight = model.layers[1].blocks[0].attn.cpb_mlp[2].weight.detach()
        del model.layers[1].blocks[0].attn.cpb_mlp[2].weight
        for factor in (1, -3):
            model.layers[1].blocks[0].attn.cpb_mlp[2].weight = factor * weight
            torch.testing.assert_close(model(x), plain(model)(x), rtol=1e-4, atol=1e-4)


class Wrapped(torch.Tensor):
    """A tensor without memory of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, Wrapped) else value

        if function is torch.ops.aten.detach.default:
            return Wrapped(args[0].inner.detach())
        return function(*torch.utils._pytree.tree_map(unwrap, args), **(kwargs or {}))


@pytest.mark.parametrize('name', ['attn.logit_scale', 'attn.cpb_mlp.0.weight', 'mlp.fc1.weight'])
def test_weights_of_a_tensor_subclass(randomize, name):
    model, x = randomize(build()).eval(), torch.randn(IMAGE)
    with torch.no_grad():
        expected = model(x)
        path, _, leaf = name.rpartition('.')
        part = model.layers[0].blocks[1].get_submodule(path)
        wrapped = nn.Parameter(Wrapped(getattr(part, leaf).detach()), requires_grad=False)
        setattr(part, leaf, wrapped)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
