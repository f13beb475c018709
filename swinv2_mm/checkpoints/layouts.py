"""The tables: one for each way in which libraries store SwinV2 weights.

Our names are the official ones. Another family of backbones adds tables with its own `family`, which is the
`checkpoint_family` of the backbone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.table import Change, Layout, Row, rows

WINDOWS_KEY = 'pretrained_window_sizes'
"""Where our own files keep the window that the position bias was trained at: an integer tensor (stages, 2)."""

DERIVED = (
    r'.*(relative_coords_table|relative_position_index|relative_position_bias|attn_mask'
    r'|relative_coordinates_log|attention_mask|default_grid)$'
)
"""Tables that follow from the window size; every library can rebuild them."""

_CLASSIFIER = (r'norm\.', r'head\.', r'head_dist\.', r'avgpool', r'mask_token$', r'decoder\.')
_BLOCK = 'layers.{s}.blocks.{b}.'
_DOWN = 'layers.{s}.downsample'
_ATTN = _BLOCK + 'attn.'
_OUTER = ('patch_embed.proj', 'patch_embed.norm', _DOWN + '.norm')
_REDUCTION = (_DOWN + '.reduction',)
_SHARED = tuple(
    _BLOCK + name for name in ('attn.qkv', 'attn.proj', 'norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
)
_NORM3 = (_BLOCK + 'norm3',)  # only in some blocks
_COMMON = _OUTER + _REDUCTION + _SHARED
_V2 = tuple(
    _ATTN + name for name in ('logit_scale', 'q_bias', 'v_bias', 'cpb_mlp.0', 'cpb_mlp.2')
)
_OUTPUT_NORM = ('norm{s}',)
_OWN = (*_NORM3, *_OUTPUT_NORM, _BLOCK + 'offset_network.0', _BLOCK + 'offset_network.2')


def _swap_columns(matrix: Tensor) -> Tensor:
    """Reorder the columns of a downsampling, or the numbers of its norm, from the order of `nn.Unfold` to ours.

    In ours the channels vary fastest, then the rows and columns of the 2 x 2 tokens; in theirs the columns, the rows,
    then the channels.
    """
    return matrix.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)


def _swap_back(matrix: Tensor) -> Tensor:
    return matrix.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)


UNFOLDED: tuple[Change, Change] = (_swap_columns, _swap_back)
"""The change of columns between `nn.Unfold` and ours."""

NATIVE = Layout(
    'native',
    rows(_COMMON + _V2 + _OWN),
    present=(r'attn\.cpb_mlp\.', rf'^({WINDOWS_KEY}$|norm\d\.)'),
    container='state_dict',
)

OFFICIAL = replace(
    NATIVE,
    name='official',
    present=(r'attn\.cpb_mlp\.',),
    absent=(rf'^({WINDOWS_KEY}$|norm\d\.)',),
    heads=_CLASSIFIER,
    container='model',
)

SIMMIM = Layout(
    'simmim',
    rows(_COMMON + _V2 + _NORM3, {'cpb_mlp': 'rpe_mlp'}),
    present=(r'attn\.rpe_mlp\.',),
    heads=_CLASSIFIER,
    container='model',
    writable=False,  # the official layout holds the same
)

TIMM = Layout(
    'timm',
    # timm puts the downsampling before the blocks that need it.
    rows(_COMMON + _V2 + _NORM3, {_DOWN: 'layers.{next}.downsample'}),
    present=(r'attn\.cpb_mlp\.', r'^layers\.\d+\.downsample\.'),
    absent=(r'^layers\.0\.downsample\.',),
    heads=_CLASSIFIER,
)

_HF_SELF = 'encoder.layers.{s}.blocks.{b}.attention.self.'
HUGGING_FACE = Layout(
    'hf',
    (
        Row(
            (_ATTN + 'qkv.weight',),
            tuple(f'{_HF_SELF}{part}.weight' for part in ('query', 'key', 'value')),
        ),
        *rows(
            _COMMON + _V2,
            {
                'patch_embed.proj': 'embeddings.patch_embeddings.projection',
                'patch_embed.norm': 'embeddings.norm',
                'layers': 'encoder.layers',
                'attn.proj': 'attention.output.dense',
                'attn.': 'attention.self.',
                'q_bias': 'query.bias',
                'v_bias': 'value.bias',
                'cpb_mlp': 'continuous_position_bias_mlp',
                'norm1': 'layernorm_before',
                'norm2': 'layernorm_after',
                'mlp.fc1': 'intermediate.dense',
                'mlp.fc2': 'output.dense',
            },
        ),
    ),
    present=(r'continuous_position_bias_mlp\.',),
    heads=(r'layernorm\.', r'pooler\.', r'embeddings\.mask_token$'),
)

TORCHVISION = Layout(
    'torchvision',
    (
        # One vector for all three; torchvision sets the part of the key to zero each time it runs.
        Row((_ATTN + 'q_bias', None, _ATTN + 'v_bias'), ('features.{body}.{b}.attn.qkv.bias',)),
        *rows(
            _COMMON + _V2,
            {
                'patch_embed.proj': 'features.0.0',
                'patch_embed.norm': 'features.0.2',
                'layers.{s}.blocks': 'features.{body}',
                _DOWN: 'features.{down}',
                'mlp.fc1': 'mlp.0',
                'mlp.fc2': 'mlp.3',
            },
        ),
    ),
    present=(r'^features\.\d+\.\d+\.attn\.cpb_mlp\.',),
    heads=_CLASSIFIER,
)

_STAGES = {_DOWN: 'stages.{next}.downsample', 'layers': 'stages'}
_MM = {
    **_STAGES,
    'patch_embed.proj': 'patch_embed.projection',
    'attn.': 'attn.w_msa.',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}
MMPRETRAIN = Layout(
    'mmpretrain',
    (
        *rows(_OUTER + _SHARED + _V2 + _NORM3 + _OUTPUT_NORM, _MM),
        *rows(_REDUCTION, _MM, UNFOLDED),
    ),
    present=(r'attn\.w_msa\.cpb_mlp\.',),
    container='state_dict',
)
