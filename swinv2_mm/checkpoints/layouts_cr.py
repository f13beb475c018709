"""The tables for the weights of `SwinTransformerV2CR`: our own, timm's `swinv2_cr_*`, and the original repository's.

The attention's temperature is stored as itself (`tau`) or as the logarithm of its inverse (`logit_scale`). Ours is the
one in the file, so nothing is lost to rounding; a model built with the other one gets it converted.
"""

from __future__ import annotations

from torch import Tensor

from swinv2_mm.checkpoints.table import BLOCK, DOWN, PATCH_EMBED, Change, Layout, Row, rows

_MIN_TAU = 0.01  # below, the temperature has no effect


def _to_logit_scale(tau: Tensor) -> Tensor:
    return tau.double().clamp_min(_MIN_TAU).log().neg().to(tau.dtype)


def _to_tau(logit_scale: Tensor) -> Tensor:
    return logit_scale.double().neg().exp().to(logit_scale.dtype)


def _temperature(theirs: str, kind: str, shape: tuple[int, ...]) -> tuple[Row, Row]:
    """Return the row for a temperature stored as `kind`, and the one for a model that has it as the other kind.

    Args:
        theirs: Their name.
        kind: `'tau'` or `'logit_scale'`.
        shape: Their shape, -1 for the heads. Ours is `(-1, 1, 1)`.
    """
    kinds = {'tau': _to_tau, 'logit_scale': _to_logit_scale}
    back = kinds.pop(kind)
    [(other, to_other)] = kinds.items()

    def row(ours: str, to_ours: Change, to_theirs: Change) -> Row:
        changes = (lambda x: to_ours(x).reshape(-1, 1, 1), lambda x: to_theirs(x).reshape(shape))
        return Row((f'{BLOCK}attn.{ours}',), (theirs,), change=changes)

    return row(kind, Tensor.detach, Tensor.detach), row(other, to_other, back)


_META_MLP = ('attn.meta_mlp.fc1', 'attn.meta_mlp.fc2')
_REST = ('attn.qkv', 'attn.proj', 'norm1', 'norm2', 'norm3', 'mlp.fc1', 'mlp.fc2')
_OFFSETS = ('offset_network.0', 'offset_network.2')
NATIVE_CR = Layout(
    'native-cr',
    (
        *rows('', '', *PATCH_EMBED),
        *rows(BLOCK, BLOCK, 'attn.tau', 'attn.logit_scale', *_META_MLP, *_REST, *_OFFSETS),
        *rows(DOWN, DOWN, 'norm', 'reduction'),
        *rows('', '', 'norm{s}'),
    ),
    otherwise=tuple(
        _temperature(f'{BLOCK}attn.{kind}', kind, (-1, 1, 1))[1] for kind in ('tau', 'logit_scale')
    ),
    present=(r'^layers\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    container='state_dict',
    family='cr',
)

_THEIR_BLOCK = 'stages.{s}.blocks.{b}.'
_THEIR_DOWN = 'stages.{next}.downsample.'  # before the blocks that need it
_logit_scale, _logit_scale_as_tau = _temperature(
    _THEIR_BLOCK + 'attn.logit_scale', 'logit_scale', (-1,)
)
TIMM_CR = Layout(
    'timm-cr',
    (
        *rows('', '', *PATCH_EMBED),
        _logit_scale,
        *rows(BLOCK, _THEIR_BLOCK, *_META_MLP, *_REST),
        *rows(DOWN, _THEIR_DOWN, 'norm', 'reduction'),
    ),
    # The last two are for files from before timm took the logarithm.
    otherwise=(
        _logit_scale_as_tau,
        *_temperature(_THEIR_BLOCK + 'attn.tau', 'tau', (-1,)),
    ),
    present=(r'^stages\.\d+\.blocks\.\d+\.attn\.meta_mlp\.',),
    heads=(r'head\.',),
    family='cr',
)

_SEED_ATTN = _THEIR_BLOCK + 'window_attention.'
_tau, _tau_as_logit_scale = _temperature(_SEED_ATTN + 'tau', 'tau', (1, -1, 1, 1))
SEED = Layout(
    'seed',
    (
        *rows(
            'patch_embed.',
            'patch_embedding.',
            ('proj', 'linear_embedding'),
            ('norm', 'normalization'),
        ),
        _tau,
        *rows(
            BLOCK + 'attn.',
            _SEED_ATTN,
            ('meta_mlp.fc1', 'meta_network.0'),
            ('meta_mlp.fc2', 'meta_network.2'),
            ('qkv', 'mapping_qkv'),
            ('proj', 'projection'),
        ),
        *rows(
            BLOCK,
            _THEIR_BLOCK,
            ('norm1', 'normalization_1'),
            ('norm2', 'normalization_2'),
            ('mlp.fc1', 'feed_forward_network.0'),
            ('mlp.fc2', 'feed_forward_network.3'),
        ),
        # The four tokens vary faster than the channels, rows slower than columns; the norm comes before the matrix.
        *rows(
            DOWN,
            _THEIR_DOWN,
            ('norm', 'normalization'),
            ('reduction', 'linear_mapping'),
            columns=('whc', 'chw'),
        ),
    ),
    otherwise=(_tau_as_logit_scale,),
    present=(r'^stages\.\d+\.blocks\.\d+\.window_attention\.meta_network\.',),
    heads=(r'classification_head\.',),
    family='cr',
)

CR_LAYOUTS = (NATIVE_CR, TIMM_CR, SEED)
