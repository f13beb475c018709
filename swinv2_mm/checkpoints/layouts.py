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

HEADS = r'(norm|head|head_dist|decoder|layernorm|pooler|classification_head)\.|avgpool|(.*\.)?mask_token$'
"""Names outside the backbone."""

_BLOCK = 'layers.{s}.blocks.{b}.'
_DOWN = 'layers.{s}.downsample'
_ATTN = _BLOCK + 'attn.'
_PATCH_EMBED = ('patch_embed.proj', 'patch_embed.norm')
_DOWNSAMPLE = (_DOWN + '.reduction', _DOWN + '.norm')
_SHARED = tuple(
    _BLOCK + name for name in ('attn.qkv', 'attn.proj', 'norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
)
_COMMON = _PATCH_EMBED + _DOWNSAMPLE + _SHARED
_V2 = tuple(_ATTN + name for name in ('logit_scale', 'q_bias', 'v_bias', 'cpb_mlp.0', 'cpb_mlp.2'))
_NORM3 = (_BLOCK + 'norm3',)  # in some blocks of the largest models
_OUTPUT_NORM = ('norm{s}',)
_OWN = (*_NORM3, *_OUTPUT_NORM, _BLOCK + 'offset_network.0', _BLOCK + 'offset_network.2')


# From the order of `nn.Unfold` to ours and back: `(channel, row, column)` and `(column, row, channel)` of 2 x 2 tokens.
UNFOLDED: tuple[Change, Change] = (
    lambda matrix: matrix.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3),
    lambda matrix: matrix.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3),
)

NATIVE = Layout(
    'native',
    rows(_COMMON + _V2 + _OWN),
    present=(r'attn\.cpb_mlp\.', rf'^({WINDOWS_KEY}$|norm\d\.)'),
    container='state_dict',
)

OFFICIAL = replace(
    NATIVE,
    name='official',
    present=(r'attn\.cpb_mlp\.', r'^layers\.0\.downsample\.'),
    container='model',
)

SIMMIM = Layout(
    'simmim',
    rows(_COMMON + _V2 + _NORM3, {'cpb_mlp': 'rpe_mlp'}),
    present=(r'attn\.rpe_mlp\.',),
    container='model',
)

TIMM = Layout(
    'timm',
    # timm puts the downsampling before the blocks that need it.
    rows(_COMMON + _V2 + _NORM3, {_DOWN: 'layers.{next}.downsample'}),
    present=(r'attn\.cpb_mlp\.',),
)

# timm.create_model(..., features_only=True) numbers the stages with an underscore.
TIMM_FEATURES = replace(
    TIMM,
    name='timm-features',
    rows=rows(_COMMON + _V2 + _NORM3, {_DOWN: 'layers.{next}.downsample', 'layers.': 'layers_'}),
    present=(r'layers_\d+\.blocks\.\d+\.attn\.cpb_mlp\.',),
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
)

_STAGES = {_DOWN: 'stages.{next}.downsample', 'layers': 'stages'}
MMPRETRAIN = Layout(
    'mmpretrain',
    rows(
        _COMMON + _V2 + _NORM3 + _OUTPUT_NORM,
        {
            **_STAGES,
            'patch_embed.proj': 'patch_embed.projection',
            'attn.': 'attn.w_msa.',
            'mlp.fc1': 'ffn.layers.0.0',
            'mlp.fc2': 'ffn.layers.1',
        },
        {_DOWN + '.reduction': UNFOLDED},
    ),
    present=(r'attn\.w_msa\.cpb_mlp\.',),
    container='state_dict',
)


# Between a temperature and the logarithm of its inverse. Below 0.01, it has no effect.
_TO_OTHER: dict[str, Change] = {
    'tau': lambda tau: tau.double().clamp_min(0.01).log().neg().to(tau.dtype),
    'logit_scale': lambda scale: scale.double().neg().exp().to(scale.dtype),
}


def _temperature(theirs: str, ours: str, shape: tuple[int, ...] = (-1, 1, 1)) -> Row:
    """Return the row for a temperature: itself (`tau`), or the logarithm of its inverse (`logit_scale`).

    Ours is the one in the file, so nothing is lost to rounding; a model built with the other one gets it converted.
    Theirs is of `shape`, -1 for the heads.
    """
    kind = theirs.rpartition('.')[2]
    there, back = (Tensor.detach,) * 2 if kind == ours else (_TO_OTHER[kind], _TO_OTHER[ours])
    change = (lambda x: there(x).reshape(-1, 1, 1), lambda x: back(x).reshape(shape))
    return Row((_ATTN + ours,), (theirs,), change)


_CR = (_ATTN + 'meta_mlp.fc1', _ATTN + 'meta_mlp.fc2')
NATIVE_CR = Layout(
    'native-cr',
    rows((*_COMMON, *_CR, *_OWN, _ATTN + 'tau', _ATTN + 'logit_scale')),
    otherwise=(
        _temperature(_ATTN + 'tau', 'logit_scale'),
        _temperature(_ATTN + 'logit_scale', 'tau'),
    ),
    present=(r'^layers\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    container='state_dict',
    family='cr',
)

_TIMM_ATTN = 'stages.{s}.blocks.{b}.attn.'
TIMM_CR = Layout(
    'timm-cr',
    (
        _temperature(_TIMM_ATTN + 'logit_scale', 'logit_scale', (-1,)),
        *rows(_COMMON + _CR + _NORM3, _STAGES),
    ),
    # The last two are for files from before timm took the logarithm.
    otherwise=(
        _temperature(_TIMM_ATTN + 'logit_scale', 'tau', (-1,)),
        _temperature(_TIMM_ATTN + 'tau', 'tau', (-1,)),
        _temperature(_TIMM_ATTN + 'tau', 'logit_scale', (-1,)),
    ),
    present=(r'^stages\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    family='cr',
)

_SEED_TAU = 'stages.{s}.blocks.{b}.window_attention.tau'
SEED = Layout(
    'seed',
    (
        _temperature(_SEED_TAU, 'tau', (1, -1, 1, 1)),
        *rows(
            _COMMON + _CR,
            {
                'patch_embed.proj': 'patch_embedding.linear_embedding',
                'patch_embed.norm': 'patch_embedding.normalization',
                **_STAGES,
                'downsample.norm': 'downsample.normalization',
                'downsample.reduction': 'downsample.linear_mapping',
                'meta_mlp.fc1': 'meta_network.0',
                'meta_mlp.fc2': 'meta_network.2',
                'attn.qkv': 'attn.mapping_qkv',
                'attn.proj': 'attn.projection',
                'attn.': 'window_attention.',
                'norm1': 'normalization_1',
                'norm2': 'normalization_2',
                'mlp.fc1': 'feed_forward_network.0',
                'mlp.fc2': 'feed_forward_network.3',
            },
            dict.fromkeys(_DOWNSAMPLE, UNFOLDED),  # the norm comes before the matrix
        ),
    ),
    otherwise=(_temperature(_SEED_TAU, 'logit_scale', (1, -1, 1, 1)),),
    present=(r'^stages\.\d+\.blocks\.\d+\.window_attention\.meta_network\.',),
    family='cr',
)

# Tried in this order: marks of a later one may match files of an earlier one.
LAYOUTS = (
    *(NATIVE, SIMMIM, OFFICIAL, TIMM_FEATURES, TIMM, HUGGING_FACE, TORCHVISION, MMPRETRAIN),
    *(NATIVE_CR, TIMM_CR, SEED),
)

BACKBONES = dict(v2='SwinTransformerV2', cr='SwinTransformerV2CR')
"""The backbone of each family of layouts."""

OTHER_MODELS = (
    (r'relative_position_bias_table$', 'a Swin V1'),
    (r'\.(tau|meta_mlp\.fc1\.weight|meta_network\.0\.weight)$', 'a SwinV2-CR'),
    (r'^(.*\.)?layer4\.\d\.conv\d\.weight$', 'a ResNet'),
    (r'^(.*\.)?cls_token$', 'a ViT'),
)
"""Names that occur in models which are often mistaken for a SwinV2."""


def layout_by_name(name: str) -> Layout:
    """Return the layout called `name`; raise CheckpointError if there is none."""
    known = {layout.name: layout for layout in LAYOUTS}
    if name not in known:
        raise CheckpointError(f'unknown layout {name!r}: expected one of {", ".join(known)}')
    return known[name]
