"""The kernel of what follows the attention: in Triton's interpreter, and on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from triton_runs import DEVICE, INTERPRETED, gpu, kernels, outside

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.layers.block import SwinBlock
from swinv2_mm.models.layers.fused_tail import _is_plain, forward_tail, runs_tail
from swinv2_mm.ops.block_tail import TailWeights, block_tail, why_not_fused
from swinv2_mm.ops.block_tail import triton_backend as backend

# Largest difference from fp64 with the same rounded inputs, over the largest entry: the hidden layer is rounded.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


def case(channels, tokens, dtype, x_dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def matrix(rows, cols):
        return (draw(rows, cols) / cols**0.5).to(dtype)

    hidden = 4 * channels
    vectors = [draw(channels) for _ in range(6)]
    weights = TailWeights(
        matrix(channels, channels), *vectors[:3], matrix(hidden, channels), draw(hidden),
        matrix(channels, hidden), *vectors[3:],
    )  # fmt: skip
    x = draw(1, tokens, channels).to(x_dtype)
    attended = draw(1, tokens, channels).to(dtype)
    return [part.to(DEVICE) for part in (x, attended)], TailWeights(
        *(weight.to(DEVICE) for weight in weights)
    )


def exact(x, attended, weights, eps):
    x, attended = x.double(), attended.double()
    w = TailWeights(*(weight.double() for weight in weights))
    shape = x.shape[-1:]
    y = F.linear(attended, w.proj_weight, w.proj_bias)
    x = x + F.layer_norm(y, shape, w.norm1_weight, w.norm1_bias, eps[0])
    y = F.linear(F.gelu(F.linear(x, w.fc1_weight, w.fc1_bias)), w.fc2_weight, w.fc2_bias)
    return x + F.layer_norm(y, shape, w.norm2_weight, w.norm2_bias, eps[1])


def check(channels, tokens, dtype, x_dtype=torch.float32):
    (x, attended), weights = case(channels, tokens, dtype, x_dtype)
    eps = (1e-5, 1e-3)
    given = x.clone()
    mine = block_tail(x, attended, weights, eps)
    theirs = exact(x, attended, weights, eps)
    assert torch.equal(x, given)
    assert mine.dtype == x_dtype and mine.shape == x.shape
    tolerance = TOLERANCES[dtype] if x_dtype == torch.float32 else 2e-2
    assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
    for _ in range(3):
        assert torch.equal(block_tail(x, attended, weights, eps), mine)


# Channels of one part and of two, each with its own sizes of blocks; the last block is not full.
@kernels
@pytest.mark.parametrize(
    ('channels', 'tokens'), [(32, 70), (48, 5), (96, 150), (128, 129), (192, 65)]
)
def test_equals_the_layers(channels, tokens):
    check(channels, tokens, torch.float16)


@kernels
def test_bf16_with_a_residual_in_bf16():
    tokens = 70 if INTERPRETED else 1000
    check(96, tokens, torch.bfloat16)
    check(192, tokens, torch.bfloat16, torch.bfloat16)


@kernels
def test_strides_do_not_matter():
    (x, attended), weights = case(32, 40, torch.float16)
    plain = block_tail(x, attended, weights, (1e-5, 1e-5))
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (x, attended)]
    assert not turned[0].is_contiguous()
    turned_weights = TailWeights(
        *(w.T.contiguous().T if w.dim() == 2 else w.repeat_interleave(2)[::2] for w in weights)
    )
    assert torch.equal(block_tail(*turned, turned_weights, (1e-5, 1e-5)), plain)


@kernels
def test_no_tokens():
    (x, attended), weights = case(32, 0, torch.float16)
    assert block_tail(x, attended, weights, (1e-5, 1e-5)).shape == (1, 0, 32)


@kernels
def test_the_operator_keeps_the_rules_of_torch():
    (x, attended), weights = case(32, 3, torch.float16)
    torch.library.opcheck(
        backend._block_tail,
        (x, attended, list(weights), 1e-5, 1e-5),
        test_utils=('test_schema', 'test_faketensor'),
    )


@kernels
def test_flops_are_those_of_three_linear_layers():
    (x, attended), weights = case(32, 3, torch.float16)
    with FlopCounterMode(display=False) as counter:
        block_tail(x, attended, weights, (1e-5, 1e-5))
    assert counter.get_total_flops() == 2 * 3 * (32 * 32 + 2 * 32 * 128)


@kernels
def test_a_block_by_its_layers(randomize):
    block = randomize(SwinBlock(48, 3, (4, 4), extra_norm=True)).to(DEVICE).eval()
    x = torch.randn(2, 5, 7, 48, device=DEVICE)
    attended = torch.randn(2, 5, 7, 48, device=DEVICE).half()
    with torch.no_grad():
        y = x + block.norm1(block.attn.proj(attended.float()))
        y = y + block.norm2(block.mlp(y))
        torch.testing.assert_close(forward_tail(block, x, attended), y, rtol=1e-2, atol=1e-2)


@outside
def test_where_it_cannot_run_it_says_why():
    cpu, half = torch.device('cpu'), torch.float16
    assert 'fp16 or bf16' in why_not_fused(cpu, torch.float32, 96, 384)
    assert '384 channels are not' in why_not_fused(cpu, half, 384, 1536)
    assert '112 channels are not' in why_not_fused(cpu, half, 112, 448)
    assert 'hidden channels are not a multiple of 32' in why_not_fused(cpu, half, 96, 100)
    assert why_not_fused(cpu, half, 96, 384) is not None  # no GPU


@outside
def test_it_stays_away_from_training_and_cpus():
    block = SwinBlock(32, 1, (4, 4)).eval()
    assert not runs_tail(block, torch.randn(1, 4, 4, 32))


def replace_act(block):
    block.mlp.act = torch.nn.ReLU()


def shorten(block):
    del block.mlp[4]


def patch(name):
    def apply(block):
        layer = block.get_submodule(name)
        layer.forward = layer.forward

    return apply


def half_norm(block):
    block.norm1 = torch.nn.LayerNorm((2, 16))


def wrong_shape(block):
    block.mlp.fc2.weight = torch.nn.Parameter(torch.zeros(32, 64))


def other_attention(block):
    class Other(type(block.attn)):
        def forward(self, x, partition):
            return x

    block.attn.__class__ = Other


def hook(block):
    block.norm2.register_forward_hook(lambda *_: None)


@outside
@pytest.mark.parametrize(
    'change',
    [
        replace_act, shorten, patch('attn'), patch('attn.proj'), patch('mlp'), patch('mlp.drop1'),
        patch('drop_path'), half_norm, wrong_shape, other_attention, hook,
    ],
)  # fmt: skip
def test_only_blocks_as_they_were_made_take_it(change):
    block = SwinBlock(32, 1, (4, 4)).eval()
    assert _is_plain(block)
    change(block)
    assert not _is_plain(block)


@gpu
def test_who_waits_for_a_layer_is_called(randomize):
    """Hooks, other layers and training take the layers one by one."""
    model = SwinTransformerV2(out_indices=(0,), drop_path_rate=0.0, attn_backend='triton')
    model = randomize(model).cuda().eval()
    block = model.layers[0].blocks[0]
    x = torch.randn(1, 16, 16, 96, device='cuda')
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16):
        assert runs_tail(block, x)
        fused = block(x)
        seen = []
        handle = block.mlp.register_forward_hook(lambda *_: seen.append(1))
        assert not runs_tail(block, x)
        plain = block(x)
        assert seen
        handle.remove()
        torch.testing.assert_close(fused, plain, rtol=3e-2, atol=3e-2)
        block.mlp.act = torch.nn.ReLU()
        assert not runs_tail(block, x)
    block = model.layers[0].blocks[1]
    assert not runs_tail(block, x)  # gradients
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16):
        assert runs_tail(block, x)
        block.attn.backend = 'auto'
        assert not runs_tail(block, x)
