"""Test the continuous position bias."""

import copy
import math
import pickle

import pytest
import torch

from swinv2_mm.models.layers import ContinuousPositionBias
from swinv2_mm.models.layers.position_bias import log_spaced_coords
from swinv2_mm.ops.window_attention.reference import expand_bias


def test_coordinates_by_hand():
    """Window 8 trained at 8: the corner is at 8, log2(8 + 1) / 3; one step is 8 / 7, log2(15 / 7) / 3."""
    table = log_spaced_coords((8, 8), (0, 0))
    assert table.shape == (15, 15, 2)
    torch.testing.assert_close(table[0, 0], torch.full((2,), -math.log2(9) / 3))
    torch.testing.assert_close(table[7, 7], torch.zeros(2))
    torch.testing.assert_close(table[8, 6], torch.tensor([1.0, -1.0]) * math.log2(15 / 7) / 3)


def test_coordinates_extrapolate_from_the_training_window():
    """Weights of window 8 at window 16: one step is still 8 / 7, and the corner is at 120 / 7."""
    table = log_spaced_coords((16, 16), (8, 8))
    torch.testing.assert_close(table[16, 15, 0].item(), math.log2(15 / 7) / 3)
    torch.testing.assert_close(table[30, 0, 1].item(), -math.log2(120 / 7 + 1) / 3)


@pytest.mark.parametrize('window', [(4, 4), (2, 5), (1, 3), (1, 1)])
def test_every_pair_of_tokens_gets_the_bias_of_its_offset(window, randomize):
    module = randomize(ContinuousPositionBias(window, (6, 6), num_heads=3)).double()
    bias = expand_bias(module())
    tokens = [(row, col) for row in range(window[0]) for col in range(window[1])]
    assert bias.shape == (3, len(tokens), len(tokens))
    assert bias.isfinite().all()
    for i, query in enumerate(tokens):
        for j, key in enumerate(tokens):
            offset = torch.tensor([query[0] - key[0], query[1] - key[1]]).double() * 8 / 5
            coords = offset.sign() * (offset.abs() + 1).log2() / 3
            hidden = (module[0].weight @ coords + module[0].bias).relu()
            expected = 16 * (module[2].weight @ hidden).sigmoid()
            torch.testing.assert_close(bias[:, i, j], expected, rtol=1e-6, atol=1e-6)


def test_part_of_a_window_has_the_biases_of_the_whole():
    module = ContinuousPositionBias((4, 5), (0, 0), num_heads=2)
    torch.testing.assert_close(module((3, 2)), module()[:, 1:6, 3:6])


def test_gradient_reaches_the_mlp():
    module = ContinuousPositionBias((3, 2), (0, 0), num_heads=2).double()
    weight = torch.randn(2, 5, 3, dtype=torch.float64)

    def loss(first):
        state = {'0.weight': first, '0.bias': module[0].bias, '2.weight': module[2].weight}
        return (torch.func.functional_call(module, state, ()) * weight).sum()

    assert torch.autograd.gradcheck(loss, module[0].weight.detach()[:].requires_grad_())


def test_derived_table_follows_the_module_but_is_never_saved():
    module = ContinuousPositionBias((4, 4), (0, 0), num_heads=2)
    assert set(module.state_dict()) == {'0.weight', '0.bias', '2.weight'}
    expected = log_spaced_coords((4, 4), (0, 0))
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(clone.coords, expected)
    assert module.half().coords.dtype == torch.float32  # a table in fp16 would be inaccurate
    with torch.device('meta'):
        empty = ContinuousPositionBias((4, 4), (0, 0), num_heads=2)
    assert torch.equal(copy.deepcopy(empty).to_empty(device='cpu').coords, expected)
    empty.load_state_dict(module.float().state_dict(), assign=True)
    assert torch.equal(empty.coords, expected)
    torch.testing.assert_close(empty(), module())


def test_bias_is_computed_in_fp32_under_autocast(randomize):
    module = randomize(ContinuousPositionBias((4, 4), (0, 0), num_heads=2))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(module(), module())
        mixed = module()
    assert torch.equal(mixed, module())
