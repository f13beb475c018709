"""Test detection of the training window of a file, and the position bias at other windows."""

import argparse
import json
import math

import pytest
import torch
from mmengine.logging import MMLogger

from swinv2_mm.checkpoints import CheckpointError, load_pretrained
from swinv2_mm.checkpoints.detect import find_backbone
from swinv2_mm.checkpoints.windows import (
    read_windows,
    windows_of_config,
    windows_of_name,
)
from swinv2_mm.models.layers.position_bias import log_spaced_coords
from swinv2_mm.ops.window_attention.reference import expand_bias

# Equation 4 for weights trained at window 8 that run at window 16, computed by hand. An offset d is first scaled as in
# the official code, x = 8 d / (8 - 1), so that the corner of the training window is at 8, followed by
# sign(x) log2(1 + |x|) / log2(8), with log2(8) = 3:
#   d = 0:  x = 0                              0
#   d = 1:  x =  8/7 = 1.1428571   log2(2.1428571)  = 1.0995357   / 3 = 0.3665119
#   d = 7:  x =  8                 log2(9)          = 3.1699250   / 3 = 1.0566417
#   d = 15: x = 120/7 = 17.1428571 log2(18.1428571) = 4.1813300   / 3 = 1.3937767
COORDINATES = {0: 0.0, 1: 0.3665119, 7: 1.0566417, 15: 1.3937767}


def official_tables(window, trained):
    """Return the buffers of the official code: coordinates normalised by the training window, and pair indices."""
    height, width = window
    axes = [
        torch.arange(-(side - 1), side, dtype=torch.float32) / (base - 1) * 8
        for side, base in zip(window, trained)
    ]
    coords = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)[None]
    coords = torch.sign(coords) * torch.log2(coords.abs() + 1.0) / math.log2(8)
    tokens = [(row, col) for row in range(height) for col in range(width)]
    index = torch.tensor(
        [
            [(qr - kr + height - 1) * (2 * width - 1) + qc - kc + width - 1 for kr, kc in tokens]
            for qr, qc in tokens
        ]
    )
    return coords, index


@pytest.fixture
def trained_at_8(nano, tmp_path):
    """Return a file of weights trained at window 8, with a bias MLP that can be computed by hand."""
    backbone = nano(window_size=8)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if 'cpb_mlp' in name:
                parameter.zero_()
        for layer in backbone.layers:
            for block in layer.blocks:
                first, _, second = block.attn.cpb_mlp
                # Hidden units: relu(row), relu(-row), relu(column)
                first.weight[0, 0], first.weight[1, 0], first.weight[2, 1] = 1.0, -1.0, 1.0
                second.weight[:, 0], second.weight[:, 1], second.weight[:, 2] = 0.5, -0.25, 2.0
    state = backbone.state_dict()
    del state['pretrained_window_sizes']
    coords, index = official_tables((8, 8), (8, 8))
    for key in list(state):
        if key.endswith('logit_scale'):
            attention = key.removesuffix('logit_scale')
            state[attention + 'relative_coords_table'] = coords
            state[attention + 'relative_position_index'] = index
    torch.save(
        {'model': {key: v for key, v in state.items() if not key.startswith('norm')}},
        tmp_path / 'w8.pth',
    )
    return tmp_path / 'w8.pth'


def bias_by_hand(row, column):
    """Compute equation 3, B = G(row, column) with the G above, squashed to (0, 16) as in the official code."""

    def coordinate(offset):
        return math.copysign(COORDINATES[abs(offset)], offset)

    y, x = coordinate(row), coordinate(column)
    value = 0.5 * max(y, 0) - 0.25 * max(-y, 0) + 2.0 * max(x, 0)
    return 16 / (1 + math.exp(-value))


def test_weights_of_window_8_at_window_16_have_the_bias_of_the_paper(trained_at_8, nano):
    backbone = nano(window_size=16)
    report = load_pretrained(backbone, trained_at_8)
    assert report.position_windows == ((8, 8),) * 3
    checked = 0
    for layer in backbone.layers:
        for block in layer.blocks:
            bias = expand_bias(block.attn.cpb_mlp())  # (heads, query, key)
            assert bias.shape[1:] == (256, 256)
            for (qr, qc), (kr, kc) in [
                ((0, 0), (0, 0)),
                ((15, 0), (0, 15)),
                ((0, 15), (15, 0)),
                ((8, 3), (1, 2)),
                ((1, 7), (2, 0)),
                ((15, 15), (0, 0)),
            ]:
                expected = bias_by_hand(qr - kr, qc - kc)
                got = bias[:, qr * 16 + qc, kr * 16 + kc]
                torch.testing.assert_close(
                    got, torch.full_like(got, expected), rtol=2e-6, atol=2e-6
                )
                checked += 1
    assert checked == 6 * 6


def test_without_the_training_window_the_bias_would_be_another(trained_at_8, nano):
    backbone = nano(window_size=16)
    right = load_pretrained(backbone, trained_at_8) and backbone.layers[0].blocks[0].attn.cpb_mlp()
    backbone.retarget([(16, 16)] * 3)
    assert (backbone.layers[0].blocks[0].attn.cpb_mlp() - right).abs().max() > 0.1


@pytest.mark.parametrize('window', [1, 5, 8, 20, (7, 12), [8, (4, 6), 3]])
def test_any_window_loads_the_file(trained_at_8, nano, window):
    backbone = nano(window_size=window).eval()
    load_pretrained(backbone, trained_at_8)
    maps = backbone(torch.randn(1, 3, 50, 70))
    assert all(item.isfinite().all() for item in maps)


def test_a_contradiction_between_config_and_file_shows_both(trained_at_8, nano):
    backbone = nano(window_size=16, pretrained_window_sizes=12)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r'\[12, 12, 12\].*\[8, 8, 8\].*relative_coords_table'
    ):
        load_pretrained(backbone, trained_at_8)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_zero_means_the_own_window_and_contradicts_a_file_of_another(trained_at_8, nano):
    load_pretrained(nano(window_size=8, pretrained_window_sizes=0), trained_at_8)
    with pytest.raises(CheckpointError, match=r'\[16, 16, 16\].*\[8, 8, 8\]'):
        load_pretrained(nano(window_size=16, pretrained_window_sizes=0), trained_at_8)


@pytest.mark.parametrize(
    ('window', 'trained'),
    [
        ((8, 8), (8, 8)),
        ((16, 16), (12, 12)),
        ((24, 24), (12, 12)),
        ((8, 8), (6, 6)),
        ((4, 7), (4, 7)),
    ],
)
def test_the_unit_of_coordinates_is_read_off_the_values_of_the_table(window, trained, nano):
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    for stage in range(3):
        coords, _ = official_tables(window, trained)
        state[f'layers.{stage}.blocks.0.attn.relative_coords_table'] = coords
    found = find_backbone(state, 'a file')
    assert read_windows(found.state, found.layout).windows == (trained,) * 3


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('swinv2_tiny_patch4_window8_256.pth', [8, 8, 8, 8]),
        ('swinv2_base_patch4_window16_256.pth', [16, 16, 16, 8]),
        ('swinv2_large_patch4_window12_192_22k.pth', [12, 12, 12, 6]),
        ('swinv2_base_patch4_window12to24_192to384_22kto1k_ft.pth', [12, 12, 12, 6]),
        ('swinv2_tiny_window16_256.ms_in1k', [16, 16, 16, 8]),
        ('swinv2_base_window12to16_192to256.ms_in22k_ft_in1k', [12, 12, 12, 6]),
        ('swinv2-large-patch4-window12to16-192to256-22kto1k-ft', [12, 12, 12, 6]),
    ],
)
def test_names_of_the_published_files(name, expected):
    assert list(windows_of_name(name).windows) == [(side, side) for side in expected]


def test_a_name_without_a_window_tells_nothing():
    assert windows_of_name('epoch_12.pth') is None


def test_config_of_transformers():
    config = dict(
        image_size=256, patch_size=4, window_size=16, pretrained_window_sizes=[0, 0, 0, 0]
    )
    assert windows_of_config(config).windows == ((16, 16), (16, 16), (16, 16), (8, 8))
    config['pretrained_window_sizes'] = [12, 12, 12, 6]
    assert windows_of_config(config).windows == ((12, 12), (12, 12), (12, 12), (6, 6))
    timm = dict(architecture='swinv2_small_window16_256', pretrained_cfg={})
    assert windows_of_config(timm).windows[-1] == (8, 8)
    assert windows_of_config({'hidden_size': 768}) is None


def test_a_config_json_beside_the_weights_counts(nano, tmp_path):
    from safetensors.torch import save_file

    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    save_file(state, tmp_path / 'model.safetensors')
    silent = load_pretrained(nano(window_size=12, norm_cfg=None), tmp_path / 'model.safetensors')
    assert silent.windows is None
    (tmp_path / 'config.json').write_text(
        json.dumps(dict(image_size=192, patch_size=4, window_size=12, depths=[2, 1, 3]))
    )
    report = load_pretrained(nano(window_size=4, norm_cfg=None), tmp_path)
    assert [pair[0] for pair in report.windows.windows] == [12, 12, 12, 6]


def test_what_the_config_says_suffices_for_a_silent_file(nano, tmp_path):
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    torch.save(state, tmp_path / 'weights.pth')
    backbone = nano(window_size=12, pretrained_window_sizes=(4, 6), norm_cfg=None)
    report = load_pretrained(backbone, tmp_path / 'weights.pth')
    assert report.windows is None
    assert report.position_windows == ((4, 6),) * 3


def test_a_silent_file_gets_the_windows_of_the_model_with_a_warning(
    nano, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handlers', [caplog.handler])
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    torch.save(state, tmp_path / 'weights.pth')
    backbone = nano(window_size=12, norm_cfg=None)
    report = load_pretrained(backbone, tmp_path / 'weights.pth')
    assert report.position_windows == ((12, 12),) * 3
    assert 'does not tell at which window it was trained: taken as that of the model' in caplog.text
    assert 'not stated in the file' in report.table()
    # Masks of the attention tell the window.
    state['layers.0.blocks.1.attn_mask'] = torch.zeros(4, 64, 64)
    torch.save(state, tmp_path / 'weights.pth')
    with pytest.raises(CheckpointError, match=r'windows of 64 tokens and the model has 12 x 12'):
        load_pretrained(backbone, tmp_path / 'weights.pth')
    load_pretrained(nano(window_size=8, norm_cfg=None), tmp_path / 'weights.pth')


@pytest.mark.parametrize(
    'beside',
    [
        {'arch': 'swinv2_tiny_window16_256'},
        {'args': argparse.Namespace(model='swinv2_tiny_window16_256', lr=0.1)},
        {'args': {'arch': 'swinv2_tiny_window16_256'}},
    ],
)
def test_the_name_of_the_model_in_a_file_tells_the_window(nano, tmp_path, beside):
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    torch.save({'state_dict': state, **beside}, tmp_path / 'model_best.pth')
    report = load_pretrained(nano(window_size=12, norm_cfg=None), tmp_path / 'model_best.pth')
    assert report.position_windows == ((16, 16),) * 3
    assert 'swinv2_tiny_window16_256' in report.table()


def test_the_unit_of_coordinates_travels_with_a_state_dict(nano):
    """Load weights of window 4 at window 7, and those at window 9, with `load_state_dict`."""
    first = nano(window_size=4)
    second = nano(window_size=7)
    second.load_state_dict(first.state_dict())
    third = nano(window_size=9)
    third.load_state_dict(second.state_dict())
    coords = third.layers[0].blocks[0].attn.cpb_mlp.coords
    torch.testing.assert_close(coords, log_spaced_coords((9, 9), (4, 4)))
    contradicting = nano(window_size=9, pretrained_window_sizes=9)
    with pytest.raises(CheckpointError, match=r'\[9, 9, 9\].*\[4, 4, 4\]'):
        contradicting.load_state_dict(third.state_dict())


def test_a_state_dict_without_it_still_loads(nano):
    state = nano().state_dict()
    del state['pretrained_window_sizes']
    assert nano().load_state_dict(state).missing_keys == []


def test_a_damaged_table_is_an_error(nano):
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    state['layers.0.blocks.0.attn.relative_coords_table'] = torch.zeros(1, 14, 15, 2)
    found = find_backbone(state, 'a file')
    with pytest.raises(CheckpointError, match=r'relative_coords_table.*\(1, 14, 15, 2\)'):
        read_windows(found.state, found.layout)


@pytest.mark.parametrize(
    'name', ['my_window8_2.pth', 'run_window8_100.pth', 'window0_256', 'w_window8_0']
)
def test_a_second_number_that_is_no_image_tells_nothing(name):
    assert windows_of_name(name) is None


@pytest.mark.parametrize(
    'stated',
    [
        '8',
        [8, 8, 8],
        [[8]],
        [[8, 0]],
        [[8, -1]],
        [[8, 'a']],
        [[8.5, 8]],
        {'a': 1},
        8,
        [[float('nan'), 8]],
    ],
)
def test_windows_in_the_metadata_that_are_none_are_an_error(stated, nano, tmp_path):
    state = nano(norm_cfg=None).state_dict()
    stored = state.pop('pretrained_window_sizes')
    torch.save(
        {'state_dict': state, 'meta': {'pretrained_window_sizes': stated}}, tmp_path / 'a.pth'
    )
    with pytest.raises(
        CheckpointError, match='pretrained_window_sizes of the checkpoint is'
    ) as caught:
        load_pretrained(nano(norm_cfg=None), tmp_path / 'a.pth')
    assert '\n' not in str(caught.value)
    assert stored.tolist() == [[4, 4]] * 3


@pytest.mark.parametrize(
    'stored', [torch.zeros(3, 2), torch.full((3, 2), math.nan), torch.ones(3), torch.ones(3, 3)]
)
def test_stored_windows_that_are_none_are_an_error(stored, nano):
    state = nano().state_dict() | {'pretrained_window_sizes': stored}
    with pytest.raises(CheckpointError, match='pretrained_window_sizes of the checkpoint is'):
        nano().load_state_dict(state)
    with pytest.raises(CheckpointError, match='pretrained_window_sizes of the checkpoint is'):
        read_windows(state, find_backbone(state, 'a file').layout)


def test_stored_windows_may_have_been_cast_with_the_rest(nano):
    state = {key: value.half() for key, value in nano(window_size=6).state_dict().items()}
    backbone = nano()
    backbone.load_state_dict(state)
    assert backbone.state_dict()['pretrained_window_sizes'].tolist() == [[6, 6]] * 3


@pytest.mark.parametrize('value', [1e30, math.inf, math.nan, -math.inf])
def test_tables_of_another_kind_tell_the_window_by_their_size(value, nano):
    state = nano(norm_cfg=None).state_dict()
    del state['pretrained_window_sizes']
    for stage in range(3):
        state[f'layers.{stage}.blocks.0.attn.relative_coords_table'] = torch.full(
            (1, 11, 11, 2), value
        )
    found = find_backbone(state, 'a file')
    assert read_windows(found.state, found.layout).windows == ((6, 6),) * 3


@pytest.mark.parametrize(
    'change', [dict(patch_size=0), dict(image_size=[192, 192]), dict(window_size=None)]
)
def test_a_config_json_that_makes_no_sense_tells_nothing(change):
    assert windows_of_config(dict(image_size=192, patch_size=4, window_size=12) | change) is None
