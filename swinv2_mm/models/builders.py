"""Feature extractors in one call, with the keywords of ChristophReich1996/Swin-Transformer-V2.

Code written for that repository runs with its import line changed to
`from swinv2_mm.models import SwinTransformerV2, swin_transformer_v2_t`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from swinv2_mm.models.backbones import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.models.backbones.arch import ARCHS_CR, check_resolution, resolve_arch


class SwinFeatures(SwinTransformerV2):
    """`SwinTransformerV2` that returns a list."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """As of `SwinTransformerV2`, in a list."""
        return list(super().forward(x))


class SwinFeaturesCR(SwinTransformerV2CR):
    """`SwinTransformerV2CR` that returns a list."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """As of `SwinTransformerV2CR`, in a list."""
        return list(super().forward(x))


# The original repository knows neither output norms, nor stage norms, nor a start at zero.
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
    """Build a feature extractor that maps images of any size to the list of its four stages' maps, without norms.

    Args:
        arch: `'tiny'`, `'small'`, `'base'`, `'large'`, `'huge'` or `'giant'`.
        input_resolution: Height and width of the images in pixels. Only kept as an attribute: windows are laid out for
            the size of every batch, so it binds nothing.
        window_size: Attention window in tokens, in every form that `SwinTransformerV2` takes.
        in_channels: Channels of the image.
        use_checkpoint: Whether activations are recomputed in the backward pass.
        sequential_self_attention: Whether windows are attended one after the other: least memory, slowest.
        use_deformable_block: Whether the blocks of stages 2 to 4 look at learned offsets.
        dropout: Dropout after the patch embedding, attention and MLPs.
        dropout_attention: Dropout of attention weights.
        dropout_path: Stochastic depth of the last block.
        patch_size: Side of a patch in pixels.
        ff_feature_ratio: Hidden width of the MLPs over their input.
        variant: `'v2'` for the official model, `'cr'` for the original repository's own, which takes its checkpoints.

    Returns:
        The backbone; `(B, C, H, W)` in, a list of `(B, C_i, ceil(H / s_i), ceil(W / s_i))` out.

    Raises:
        TypeError: If an option does not exist or has the wrong type.
        ValueError: If an option is out of range or contradicts another.
    """
    if variant not in ('v2', 'cr'):
        raise ValueError(f"variant is {variant!r}: expected 'v2' (the official model) or 'cr'")
    resolution = None
    if input_resolution is not None:
        resolution = check_resolution(input_resolution, 'input_resolution')
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
    model.input_resolution = resolution
    return model


def swin_transformer_v2_t(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-T; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('tiny', *args, **options)


def swin_transformer_v2_s(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-S; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('small', *args, **options)


def swin_transformer_v2_b(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-B; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('base', *args, **options)


def swin_transformer_v2_l(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-L; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('large', *args, **options)


def swin_transformer_v2_h(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-H; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('huge', *args, **options)


def swin_transformer_v2_g(*args: Any, **options: Any) -> SwinTransformerV2:
    """Build SwinV2-G; arguments as of `swin_transformer_v2`, without the first."""
    return swin_transformer_v2('giant', *args, **options)
