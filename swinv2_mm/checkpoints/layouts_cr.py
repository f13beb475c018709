"""The tables for the weights of `SwinTransformerV2CR`: our own, timm's `swinv2_cr_*`, and the original repository's.

The attention's temperature is stored as itself (`tau`) or as the logarithm of its inverse (`logit_scale`). Ours is
whichever the file has, so nothing is lost to rounding; a model built with the other one gets it converted.
"""

from __future__ import annotations

from torch import Tensor

from swinv2_mm.checkpoints.table import Change, Layout, Row

_MIN_TAU = 0.01  # below, the temperature has no effect

_BLOCK = 'layers.{s}.blocks.{b}.'
_DOWN = 'layers.{s}.downsample.'
_TAU = _BLOCK + 'attn.tau'
_LOGIT_SCALE = _BLOCK + 'attn.logit_scale'
_OUTPUT_NORMS = Row('norm{s}', 'norm{s}')


def _as_ours(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1)


def _log_of_inverse(tau: Tensor) -> Tensor:
    return tau.double().clamp_min(_MIN_TAU).log().neg().to(tau.dtype)


def _inverse_of_exp(logit_scale: Tensor) -> Tensor:
    return logit_scale.double().neg().exp().to(logit_scale.dtype)


NATIVE_CR = Layout(
    'native-cr',
    (
        *(Row(name, name) for name in ('patch_embed.proj', 'patch_embed.norm')),
        *(
            Row(_BLOCK + name, _BLOCK + name)
            for name in (
                'attn.tau',
                'attn.logit_scale',
                'attn.meta_mlp.fc1',
                'attn.meta_mlp.fc2',
                'attn.qkv',
                'attn.proj',
                'norm1',
                'norm2',
                'norm3',
                'mlp.fc1',
                'mlp.fc2',
                'offset_network.0',
                'offset_network.2',
            )
        ),
        Row(_DOWN + 'norm', _DOWN + 'norm'),
        Row(_DOWN + 'reduction', _DOWN + 'reduction'),
        _OUTPUT_NORMS,
    ),
    otherwise=(
        Row(_LOGIT_SCALE, _TAU, change=Change(_log_of_inverse, _inverse_of_exp)),
        Row(_TAU, _LOGIT_SCALE, change=Change(_inverse_of_exp, _log_of_inverse)),
    ),
    present=(r'^layers\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    container='state_dict',
    family='cr',
)

_TIMM = 'stages.{s}.blocks.{b}.'
TIMM_CR = Layout(
    'timm-cr',
    (
        *(Row(name, name) for name in ('patch_embed.proj', 'patch_embed.norm')),
        Row(
            _LOGIT_SCALE,
            _TIMM + 'attn.logit_scale',
            change=Change(_as_ours, lambda value: value.reshape(-1)),
        ),
        *(
            Row(_BLOCK + name, _TIMM + name)
            for name in (
                'attn.meta_mlp.fc1',
                'attn.meta_mlp.fc2',
                'attn.qkv',
                'attn.proj',
                'norm1',
                'norm2',
                'norm3',
                'mlp.fc1',
                'mlp.fc2',
            )
        ),
        # timm puts the downsampling before the blocks that need it.
        Row(_DOWN + 'norm', 'stages.{next}.downsample.norm'),
        Row(_DOWN + 'reduction', 'stages.{next}.downsample.reduction'),
    ),
    otherwise=(
        Row(
            _TAU,
            _TIMM + 'attn.logit_scale',
            change=Change(
                lambda value: _as_ours(_inverse_of_exp(value)),
                lambda value: _log_of_inverse(value).reshape(-1),
            ),
        ),
        # Files from before timm took the logarithm.
        Row(_TAU, _TIMM + 'attn.tau', change=Change(_as_ours, lambda value: value.reshape(-1))),
        Row(
            _LOGIT_SCALE,
            _TIMM + 'attn.tau',
            change=Change(
                lambda value: _as_ours(_log_of_inverse(value)),
                lambda value: _inverse_of_exp(value).reshape(-1),
            ),
        ),
    ),
    present=(r'^stages\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    heads=(r'head\.',),
    family='cr',
)

_SEED = 'stages.{s}.blocks.{b}.'
_SEED_ATTN = _SEED + 'window_attention.'
_SEED_DOWN = 'stages.{next}.downsample.'
SEED = Layout(
    'seed',
    (
        Row('patch_embed.proj', 'patch_embedding.linear_embedding'),
        Row('patch_embed.norm', 'patch_embedding.normalization'),
        Row(
            _TAU,
            _SEED_ATTN + 'tau',
            change=Change(_as_ours, lambda value: value.reshape(1, -1, 1, 1)),
        ),
        Row(_BLOCK + 'attn.meta_mlp.fc1', _SEED_ATTN + 'meta_network.0'),
        Row(_BLOCK + 'attn.meta_mlp.fc2', _SEED_ATTN + 'meta_network.2'),
        Row(_BLOCK + 'attn.qkv', _SEED_ATTN + 'mapping_qkv'),
        Row(_BLOCK + 'attn.proj', _SEED_ATTN + 'projection'),
        Row(_BLOCK + 'norm1', _SEED + 'normalization_1'),
        Row(_BLOCK + 'norm2', _SEED + 'normalization_2'),
        Row(_BLOCK + 'mlp.fc1', _SEED + 'feed_forward_network.0'),
        Row(_BLOCK + 'mlp.fc2', _SEED + 'feed_forward_network.3'),
        # The four tokens vary faster than the channels, rows slower than columns; norm and matrix see them alike.
        Row(_DOWN + 'norm', _SEED_DOWN + 'normalization', columns=('whc', 'chw')),
        Row(_DOWN + 'reduction', _SEED_DOWN + 'linear_mapping', columns=('whc', 'chw')),
    ),
    otherwise=(
        Row(
            _LOGIT_SCALE,
            _SEED_ATTN + 'tau',
            change=Change(
                lambda value: _as_ours(_log_of_inverse(value)),
                lambda value: _inverse_of_exp(value).reshape(1, -1, 1, 1),
            ),
        ),
    ),
    present=(r'^stages\.\d+\.blocks\.\d+\.window_attention\.meta_network\.',),
    heads=(r'classification_head\.',),
    family='cr',
)

CR_LAYOUTS = (NATIVE_CR, TIMM_CR, SEED)
