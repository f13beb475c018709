"""Test layout tables in both directions."""

import pytest
import torch

from swinv2_mm.checkpoints import CheckpointError
from swinv2_mm.checkpoints.layouts import LAYOUTS, UNFOLDED, layout_by_name
from swinv2_mm.checkpoints.table import Layout, Row, translate


def run(row, state, to_ours):
    recipes, _ = translate(state, Layout('test', (row,)), to_ours)
    return {key: recipe.make(state) for key, recipe in recipes.items()}


@pytest.mark.parametrize(
    'row',
    [
        Row(('layers.{s}.fc.weight',), ('stages.{next}.linear.weight',)),
        Row(('layers.{s}.fc.weight',), ('stages.{s}.a', 'stages.{s}.b')),
        Row(('layers.{s}.fc.weight', None, 'layers.{s}.other.weight'), ('seq.{body}.weight',)),
        Row(('layers.{s}.fc.weight',), ('seq.{down}.weight',), change=UNFOLDED),
    ],
)
def test_there_and_back(row):
    ours = {f'layers.{s}.fc.weight': torch.randn(4, 8) for s in range(3)}
    if len(row.ours) > 1:
        ours |= {f'layers.{s}.other.weight': torch.randn(4, 8) for s in range(3)}
    theirs = run(row, ours, to_ours=False)
    assert set(theirs) != set(ours)
    again = run(row, theirs, to_ours=True)
    assert set(again) == set(ours)
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_columns_of_two_by_two_tokens_are_reordered():
    """Official order: by token, down the columns. `nn.Unfold`: by channel, along the rows."""
    row = Row(('ours',), ('theirs',), change=UNFOLDED)
    image = torch.randn(1, 3, 2, 2)  # (batch, channel, row, column)
    tokens = torch.cat([image[0, :, r, c] for c in (0, 1) for r in (0, 1)])
    unfolded = torch.nn.functional.unfold(image, 2)[0, :, 0]
    weight = torch.randn(5, 12)
    theirs = run(row, {'ours': weight}, to_ours=False)['theirs']
    torch.testing.assert_close(theirs @ unfolded, weight @ tokens)


def test_what_no_row_names_is_reported():
    layout = Layout('test', (Row(('fc',), ('linear',)), Row(('qkv',), ('q', 'k'))))
    names = ['linear.weight', 'linear.bias', 'other.weight', 'q']
    recipes, unknown = translate(names, layout, to_ours=True)
    assert set(recipes) == {'fc.weight', 'fc.bias'}
    assert unknown == {'other.weight': [], 'q': ['k']}


def test_parts_that_are_not_equal_are_an_error():
    with pytest.raises(ValueError, match=r'qkv of shape \(7, 2\): unflatten'):
        run(Row(('qkv',), ('q', 'k', 'v')), {'qkv': torch.ones(7, 2)}, to_ours=False)


V2_LAYOUTS = [layout for layout in LAYOUTS if layout.family == 'v2']


@pytest.mark.parametrize('layout', V2_LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_names_every_tensor_of_a_backbone(layout, nano):
    names = [name for name, _ in nano(norm_cfg=None).named_parameters()]
    theirs, unknown = translate(names, layout, to_ours=False)
    assert unknown == {}
    ours, _ = translate(theirs, layout, to_ours=True)
    assert set(ours) == set(names)


def test_layouts_have_names_of_their_own():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    with pytest.raises(CheckpointError, match="unknown layout 'keras': expected one of native"):
        layout_by_name('keras')


def test_large_numbers_in_names_cost_nothing():
    """A table must not grow with the largest number in a file."""
    names = ['layers.0.blocks.1.norm1.weight', 'head.9999.9999.weight', f'head.{"9" * 5000}.bias']
    recipes, unknown = translate(names, layout_by_name('native'), to_ours=True)
    assert set(recipes) == {names[0]}
    assert list(unknown) == names[1:]
