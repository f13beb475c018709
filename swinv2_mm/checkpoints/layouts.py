"""The tables: one for each way in which SwinV2 weights are stored in the wild.

Our own names are the official ones, which keeps most rows short. Another family of backbones joins with
tables of its own, whose `family` is the `checkpoint_family` of the backbone.
"""

from __future__ import annotations

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts_cr import CR_LAYOUTS
from swinv2_mm.checkpoints.table import Layout, Row

WINDOWS_KEY = 'pretrained_window_sizes'
"""Where our own files keep the window that the position bias was trained at: an integer tensor (stages, 2)."""

DERIVED = (
    r'.*(relative_coords_table|relative_position_index|relative_position_bias|attn_mask'
    r'|relative_coordinates_log|attention_mask|default_grid)$'
)
"""Tables that follow from the window size; every library can rebuild them."""

_BLOCK = 'layers.{s}.blocks.{b}.'
_DOWN = 'layers.{s}.downsample.'
_CLASSIFIER = (r'norm\.', r'head\.', r'head_dist\.', r'avgpool', r'mask_token$', r'decoder\.')


def _same(*names: str) -> tuple[Row, ...]:
    return tuple(Row(name, name) for name in names)


_OUTER = _same('patch_embed.proj', 'patch_embed.norm')
_OUTPUT_NORMS = (Row('norm{s}', 'norm{s}'),)
_OFFICIAL_BLOCK = _same(
    *(
        _BLOCK + name
        for name in (
            'attn.qkv',
            'attn.q_bias',
            'attn.v_bias',
            'attn.logit_scale',
            'attn.proj',
            'norm1',
            'norm2',
            'norm3',
            'mlp.fc1',
            'mlp.fc2',
        )
    )
)
_BIAS_MLP = _same(_BLOCK + 'attn.cpb_mlp.0', _BLOCK + 'attn.cpb_mlp.2')
_OFFSETS = _same(_BLOCK + 'offset_network.0', _BLOCK + 'offset_network.2')
_TAIL_DOWN = _same(_DOWN + 'reduction', _DOWN + 'norm')

NATIVE = Layout(
    'native',
    (*_OUTER, *_OFFICIAL_BLOCK, *_BIAS_MLP, *_OFFSETS, *_TAIL_DOWN, *_OUTPUT_NORMS),
    present=(r'attn\.cpb_mlp\.', rf'^({WINDOWS_KEY}$|norm\d\.)'),
    container='state_dict',
)

OFFICIAL = Layout(
    'official',
    NATIVE.rows,
    present=(r'attn\.cpb_mlp\.',),
    absent=(rf'^({WINDOWS_KEY}$|norm\d\.)',),
    heads=_CLASSIFIER,
    container='model',
)

SIMMIM = Layout(
    'simmim',
    (
        *_OUTER,
        *_OFFICIAL_BLOCK,
        Row(_BLOCK + 'attn.cpb_mlp.0', _BLOCK + 'attn.rpe_mlp.0'),
        Row(_BLOCK + 'attn.cpb_mlp.2', _BLOCK + 'attn.rpe_mlp.2'),
        *_TAIL_DOWN,
    ),
    present=(r'attn\.rpe_mlp\.',),
    heads=_CLASSIFIER,
    container='model',
    writable=False,  # the official name of the same thing is the official layout
)

TIMM = Layout(
    'timm',
    (
        *_OUTER,
        *_OFFICIAL_BLOCK,
        *_BIAS_MLP,
        # timm puts the downsampling before the blocks that need it.
        Row(_DOWN + 'reduction', 'layers.{next}.downsample.reduction'),
        Row(_DOWN + 'norm', 'layers.{next}.downsample.norm'),
    ),
    present=(r'attn\.cpb_mlp\.', r'^layers\.\d+\.downsample\.'),
    absent=(r'^layers\.0\.downsample\.',),
    heads=_CLASSIFIER,
)

_HF_BLOCK = 'encoder.layers.{s}.blocks.{b}.'
_HF_SELF = _HF_BLOCK + 'attention.self.'
HUGGING_FACE = Layout(
    'hf',
    (
        Row('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
        Row('patch_embed.norm', 'embeddings.norm'),
        Row(
            _BLOCK + 'attn.qkv.weight',
            tuple(f'{_HF_SELF}{part}.weight' for part in ('query', 'key', 'value')),
        ),
        Row(_BLOCK + 'attn.q_bias', _HF_SELF + 'query.bias'),
        Row(_BLOCK + 'attn.v_bias', _HF_SELF + 'value.bias'),
        Row(_BLOCK + 'attn.logit_scale', _HF_SELF + 'logit_scale'),
        Row(_BLOCK + 'attn.cpb_mlp.0', _HF_SELF + 'continuous_position_bias_mlp.0'),
        Row(_BLOCK + 'attn.cpb_mlp.2', _HF_SELF + 'continuous_position_bias_mlp.2'),
        Row(_BLOCK + 'attn.proj', _HF_BLOCK + 'attention.output.dense'),
        Row(_BLOCK + 'norm1', _HF_BLOCK + 'layernorm_before'),
        Row(_BLOCK + 'norm2', _HF_BLOCK + 'layernorm_after'),
        Row(_BLOCK + 'mlp.fc1', _HF_BLOCK + 'intermediate.dense'),
        Row(_BLOCK + 'mlp.fc2', _HF_BLOCK + 'output.dense'),
        Row(_DOWN + 'reduction', 'encoder.layers.{s}.downsample.reduction'),
        Row(_DOWN + 'norm', 'encoder.layers.{s}.downsample.norm'),
    ),
    present=(r'continuous_position_bias_mlp\.',),
    heads=(r'layernorm\.', r'pooler\.', r'embeddings\.mask_token$'),
)

_TV_BLOCK = 'features.{body}.{b}.'
TORCHVISION = Layout(
    'torchvision',
    (
        Row('patch_embed.proj', 'features.0.0'),
        Row('patch_embed.norm', 'features.0.2'),
        Row(_BLOCK + 'attn.qkv.weight', _TV_BLOCK + 'attn.qkv.weight'),
        # One vector for all three; torchvision zeroes the part of the key each time it runs.
        Row((_BLOCK + 'attn.q_bias', None, _BLOCK + 'attn.v_bias'), _TV_BLOCK + 'attn.qkv.bias'),
        Row(_BLOCK + 'attn.logit_scale', _TV_BLOCK + 'attn.logit_scale'),
        Row(_BLOCK + 'attn.cpb_mlp.0', _TV_BLOCK + 'attn.cpb_mlp.0'),
        Row(_BLOCK + 'attn.cpb_mlp.2', _TV_BLOCK + 'attn.cpb_mlp.2'),
        Row(_BLOCK + 'attn.proj', _TV_BLOCK + 'attn.proj'),
        Row(_BLOCK + 'norm1', _TV_BLOCK + 'norm1'),
        Row(_BLOCK + 'norm2', _TV_BLOCK + 'norm2'),
        Row(_BLOCK + 'mlp.fc1', _TV_BLOCK + 'mlp.0'),
        Row(_BLOCK + 'mlp.fc2', _TV_BLOCK + 'mlp.3'),
        Row(_DOWN + 'reduction', 'features.{down}.reduction'),
        Row(_DOWN + 'norm', 'features.{down}.norm'),
    ),
    present=(r'^features\.\d+\.\d+\.attn\.cpb_mlp\.',),
    heads=_CLASSIFIER,
)

_MM_BLOCK = 'stages.{s}.blocks.{b}.'
_MM_MSA = _MM_BLOCK + 'attn.w_msa.'
MMPRETRAIN = Layout(
    'mmpretrain',
    (
        Row('patch_embed.proj', 'patch_embed.projection'),
        Row('patch_embed.norm', 'patch_embed.norm'),
        *(
            Row(f'{_BLOCK}attn.{name}', _MM_MSA + name)
            for name in ('qkv', 'q_bias', 'v_bias', 'logit_scale', 'cpb_mlp.0', 'cpb_mlp.2', 'proj')
        ),
        Row(_BLOCK + 'norm1', _MM_BLOCK + 'norm1'),
        Row(_BLOCK + 'norm2', _MM_BLOCK + 'norm2'),
        Row(_BLOCK + 'norm3', _MM_BLOCK + 'norm3'),
        Row(_BLOCK + 'mlp.fc1', _MM_BLOCK + 'ffn.layers.0.0'),
        Row(_BLOCK + 'mlp.fc2', _MM_BLOCK + 'ffn.layers.1'),
        # Theirs comes from `nn.Unfold`: the four tokens vary faster than the channels, rows slower than columns.
        Row(
            _DOWN + 'reduction.weight',
            'stages.{next}.downsample.reduction.weight',
            columns=('whc', 'chw'),
        ),
        Row(_DOWN + 'norm', 'stages.{next}.downsample.norm'),
        *_OUTPUT_NORMS,
    ),
    present=(r'attn\.w_msa\.cpb_mlp\.',),
    container='state_dict',
)

# Tried in this order: marks of a later one may match files of an earlier one.
LAYOUTS: tuple[Layout, ...] = (
    NATIVE,
    SIMMIM,
    TIMM,
    OFFICIAL,
    HUGGING_FACE,
    TORCHVISION,
    MMPRETRAIN,
    *CR_LAYOUTS,
)

BACKBONES = dict(v2='SwinTransformerV2', cr='SwinTransformerV2CR')
"""The backbone of each family of layouts."""

OTHER_MODELS = (
    (r'relative_position_bias_table$', 'a Swin V1'),
    (r'\.(tau|meta_mlp\.fc1\.weight|meta_network\.0\.weight)$', 'a SwinV2-CR'),
    (r'^(.*\.)?layer4\.\d\.conv\d\.weight$', 'a ResNet'),
    (r'^(.*\.)?cls_token$', 'a ViT'),
)
"""Names that give away models which are often mistaken for a SwinV2."""


def layout_by_name(name: str) -> Layout:
    """Returns the layout called `name`.

    Raises:
        CheckpointError: There is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise CheckpointError(
        f'unknown layout {name!r}: expected one of {", ".join(layout.name for layout in LAYOUTS)}'
    )
