"""Functions that build feature extractors, with the arguments of ChristophReich1996/Swin-Transformer-V2.

Code written for that repository runs after changing its import to
`from swinv2_mm.models import SwinTransformerV2, swin_transformer_v2_t`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from swinv2_mm.models.backbones import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.models.backbones.arch import ARCHS_CR, check_choice, check_resolution, resolve_arch


class SwinFeatures(SwinTransformerV2):
    """`SwinTransformerV2` that returns a list."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Return the maps of `SwinTransformerV2` in a list."""
        return list(super().forward(x))


class SwinFeaturesCR(SwinTransformerV2CR):
    """`SwinTransformerV2CR` that returns a list."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Return the maps of `SwinTransformerV2CR` in a list."""
        return list(super().forward(x))


# The original repository does not have output norms, stage norms or an initial scale of zero.
_CR_OPTIONS: dict[str, Any] = dict(
    temperature='tau', meta_hidden_dims=256, stage_norms='none', init_values=None
)


def swin_transformer_v2(
    arch: str,
    input_resolution: int | tuple[int, int] | None = None,
    window_size: int | Sequence[Any] = 7,
    in_channels: int = 3,
    use_checkpoint: bool = False,
    sequential_self_attention: bool = False,
    use_deformable_block: bool = False,
    dropout: float = 0.0,
    dropout_attention: float = 0.0,
    dropout_path: float = 0.2,
    patch_size: int = 4,
    ff_feature_ratio: float = 4.0,
    variant: str = 'v2',
) -> SwinTransformerV2:
    """Build a feature extractor that returns the maps of four stages in a list, without output norms.

    Args:
        arch: `'tiny'`, `'small'`, `'base'`, `'large'`, `'huge'` or `'giant'`.
        input_resolution: Height and width of the images in pixels. Only stored as an attribute: images of any size
            are accepted.
        window_size: Attention window in tokens; see `SwinTransformerV2`.
        in_channels: Channels of the image.
        use_checkpoint: Whether to recompute activations in the backward pass.
        sequential_self_attention: Whether to process windows one by one: least memory, slowest.
        use_deformable_block: Whether to use `DeformableSwinBlock` in stages 2 to 4.
        dropout: Dropout after the patch embedding, attention and MLPs.
        dropout_attention: Dropout of attention weights.
        dropout_path: Stochastic depth rate of the last block.
        patch_size: Side of a patch in pixels.
        ff_feature_ratio: Ratio of hidden width to input width of the MLPs.
        variant: `'v2'` for the official model, `'cr'` for the model and checkpoints of the original repository.

    Returns:
        A backbone that maps `(B, C, H, W)` to a list of `(B, C_i, ceil(H / s_i), ceil(W / s_i))`.

    Raises:
        TypeError: If an option does not exist or has the wrong type.
        ValueError: If an option is out of range or contradicts another.
    """
    check_choice('variant', variant, ('v2', 'cr'))
    options: dict[str, Any] = dict(
        window_size=window_size,
        in_channels=in_channels,
        use_checkpoint=use_checkpoint,
        sequential_self_attention=sequential_self_attention,
        use_deformable_block=use_deformable_block,
        drop_rate=dropout,
        attn_drop_rate=dropout_attention,
        drop_path_rate=dropout_path,
        patch_size=patch_size,
        mlp_ratio=ff_feature_ratio,
        norm_cfg=None,
    )
    model: SwinTransformerV2
    if variant == 'v2':
        model = SwinFeatures(arch, **options)
    else:
        size = resolve_arch(arch, ARCHS_CR)
        model = SwinFeaturesCR(
            dict(embed_dims=size.embed_dims, depths=size.depths, num_heads=size.num_heads),
            **_CR_OPTIONS,
            **options,
        )
    if input_resolution is not None:
        model.input_resolution = check_resolution(input_resolution, 'input_resolution')
    return model


swin_transformer_v2_t = partial(swin_transformer_v2, 'tiny')
swin_transformer_v2_s = partial(swin_transformer_v2, 'small')
swin_transformer_v2_b = partial(swin_transformer_v2, 'base')
swin_transformer_v2_l = partial(swin_transformer_v2, 'large')
swin_transformer_v2_h = partial(swin_transformer_v2, 'huge')
swin_transformer_v2_g = partial(swin_transformer_v2, 'giant')
