"""Test inference in bands and cached position biases."""

import copy
import pickle

import pytest
import torch

from swinv2_mm.models.layers import SwinBlock, SwinStage, bands
from swinv2_mm.models.layers.patch import PatchEmbed, PatchMerging, PreNormPatchMerging
from swinv2_mm.ops.execution import Execution, plan_block


@pytest.fixture(params=['fused', 'auto'])
def block(randomize, request):
    return randomize(
        SwinBlock(16, 2, (4, 5), shifted=True, extra_norm=True, backend=request.param)
    ).eval()


def both(module, x):
    """Return the results with and without gradients; only the latter runs in bands."""
    plain = module(x)
    with torch.no_grad():
        return module(x), plain.detach()


@pytest.mark.parametrize('tokens', [1, 50, 10_000])
@pytest.mark.parametrize('size', [(8, 10), (9, 13), (3, 17), (2, 2)])
def test_bands_equal_the_whole(block, size, tokens, monkeypatch):
    monkeypatch.setattr(bands, 'BAND_NUMBERS', tokens * 16)
    x = torch.randn(3, *size, 16)
    before = x.clone()
    torch.testing.assert_close(*both(block, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize('tokens', [1, 20, 10_000])
@pytest.mark.parametrize('size', [(1, 1), (13, 22), (32, 9)])
@pytest.mark.parametrize('build', [PatchEmbed, PatchMerging, PreNormPatchMerging])
def test_patches_in_bands_equal_the_whole(build, size, tokens, randomize, monkeypatch):
    monkeypatch.setattr(bands, 'BAND_NUMBERS', tokens * 32)
    if build is PatchEmbed:
        module, x = PatchEmbed(3, 16), torch.randn(2, 3, *size)
    else:
        module, x = build(8), torch.randn(2, *size, 8)
    mine, plain = both(randomize(module).eval(), x)
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_a_stage_overwrites_its_own_maps_only(randomize):
    stage = randomize(SwinStage(16, 4, [0.0] * 4, False, num_heads=2, window_size=(4, 4))).eval()
    x, seen = torch.randn(2, 11, 14, 16), []
    before, (mine, plain) = x.clone(), both(stage, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    stage.blocks[1].register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    both(stage, x)
    assert len(seen) == 2 and all(torch.equal(*pair) for pair in seen)
    with torch.no_grad():
        given = torch.randn(2, 11, 14, 16)
        kept = given.clone()
        assert stage.blocks[0](given, Execution(in_bands=True, overwrite=True)) is given
        torch.testing.assert_close(given, stage.blocks[0](kept))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_bands_in_other_dtypes(block, dtype):
    block.to(dtype)
    x = torch.randn(1, 9, 13, 16, dtype=dtype)
    mine, plain = both(block, x)
    assert mine.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(mine, plain, rtol=tolerance, atol=tolerance)


def test_bands_under_autocast(block):
    x = torch.randn(1, 9, 13, 16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mine, plain = both(block, x)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, plain, rtol=0.1, atol=0.1)


def test_only_unwatched_inference_runs_in_bands(block):
    x = torch.randn(1, 8, 8, 16)
    assert not plan_block(block, x).in_bands
    with torch.no_grad():
        assert plan_block(block, x).in_bands
        block.norm1.train()
        assert not plan_block(block, x).in_bands
        block.eval()
        handle = block.attn.register_forward_hook(lambda *args: None)
        assert not plan_block(block, x).in_bands
        handle.remove()
        assert plan_block(block, x).in_bands
        block.attn.backend = 'reference'
        assert not plan_block(block, x).in_bands


def test_a_hook_on_the_mlp_sees_what_passes(block):
    seen = []
    block.mlp.act.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = torch.randn(1, 8, 8, 16)
    mine, plain = both(block, x)
    assert len(seen) == 2
    torch.testing.assert_close(mine, plain)


def change_in_place(mlp):
    mlp[2].weight.data.mul_(-3)


def load(mlp):
    mlp.load_state_dict({key: value * -3 for key, value in mlp.state_dict().items()})


def step(mlp):
    optimizer = torch.optim.SGD(mlp.parameters(), lr=1.0)
    for parameter in mlp.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def swap(mlp):
    mlp[0].weight = torch.nn.Parameter(torch.randn_like(mlp[0].weight))


@pytest.mark.parametrize(
    'change',
    [change_in_place, load, step, swap, lambda mlp: mlp.double(), lambda mlp: mlp.retarget((9, 9))],
)
def test_remembered_biases_follow_the_weights(block, change):
    x = torch.randn(1, 8, 10, 16)
    with torch.no_grad():
        before = block(x)
        change(block.attn.cpb_mlp)
        after = block(x)
    torch.testing.assert_close(after, block(x).detach(), rtol=1e-5, atol=1e-5)
    if change.__name__ != '<lambda>':
        assert (after - before).abs().max() > 1e-3


def test_biases_are_remembered_but_neither_copied_nor_saved(block):
    with torch.no_grad():
        block(torch.randn(1, 8, 10, 16))
        bias = block.attn.remembered_bias((4, 5), 'double', lambda table: 2 * table)
        assert block.attn.remembered_bias((4, 5), 'double', lambda table: 3 * table) is bias
        torch.testing.assert_close(bias, 2 * block.attn.position_bias((4, 5)))
    for clone in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert not clone.attn._biases._kept[1]


def test_many_sizes_do_not_pile_up(randomize):
    stage = randomize(SwinStage(8, 2, [0.0, 0.0], False, num_heads=2, window_size=(4, 4))).eval()
    with torch.no_grad():
        for side in range(4, 30):
            stage(torch.randn(1, side, 2 * side, 8))
    assert all(len(block.attn._biases._kept[1]) <= 8 for block in stage.blocks)
