"""The backbone of Christoph Reich's reimplementation of SwinV2, which timm continues as `swinv2_cr_*`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from swinv2_mm.models.backbones.arch import ARCHS_CR, Arch, check_choice, check_integer, check_rate
from swinv2_mm.models.backbones.swin_transformer_v2 import SwinTransformerV2
from swinv2_mm.models.layers import TEMPERATURES, PreNormPatchMerging, WindowAttentionCR
from swinv2_mm.registry import register_everywhere


@register_everywhere
class SwinTransformerV2CR(SwinTransformerV2):
    """SwinV2 as implemented by ChristophReich1996/Swin-Transformer-V2 and timm's `swinv2_cr_*`.

    Differences from `SwinTransformerV2`: the position bias is an unbounded function of the signed logarithm of offsets
    in tokens, so weights do not depend on a training window; queries, keys and values all have a bias; patches are
    normalised before they are merged. Everything else is shared. The defaults are those of timm:

    | weights | options |
    | --- | --- |
    | timm `swinv2_cr_*` | `window_size=7` (of `_224`) |
    | timm `swinv2_cr_*_ns_*` | the same, `stage_norms='all'` |
    | the original repository | `temperature='tau', meta_hidden_dims=256, stage_norms='none', init_values=None` |

    Args:
        arch: See `SwinTransformerV2`; `'giant'` has two blocks in the last stage here, not four.
        temperature: Parameter of the attention's temperature: `'logit_scale'`, the logarithm of its inverse (timm),
            or `'tau'`, the temperature itself (the original repository).
        meta_hidden_dims: Hidden width of the position bias MLP.
        meta_drop_rate: Dropout in that MLP; timm trains with 0.125.
        stage_norms: Stages that end with an additional norm: `'none'`, `'last'`, or `'all'`.
        init_values: Initial scale of the norms at the end of the residual branches; `None` for 1.
        shift_windows: Whether to shift the windows of every other block.
        **options: Other arguments of `SwinTransformerV2`, except `pretrained_window_sizes`.

    Raises:
        TypeError: If an option has the wrong type or does not exist.
        ValueError: If an option is out of range or contradicts another.
    """

    checkpoint_family: ClassVar[str] = 'cr'
    archs: ClassVar[Mapping[str, Arch]] = ARCHS_CR
    coordinates_have_unit: ClassVar[bool] = False

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        *,
        temperature: str = 'logit_scale',
        meta_hidden_dims: int = 384,
        meta_drop_rate: float = 0.0,
        stage_norms: str = 'last',
        init_values: float | None = 0.0,
        shift_windows: bool = True,
        **options: Any,
    ) -> None:
        if 'pretrained_window_sizes' in options:
            raise TypeError(
                'SwinTransformerV2CR has no pretrained_window_sizes: its position bias counts in tokens, so its '
                'weights mean the same at every window; leave it out'
            )
        check_choice('temperature', temperature, TEMPERATURES)
        check_choice('stage_norms', stage_norms, ('none', 'last', 'all'))
        check_integer('meta_hidden_dims', meta_hidden_dims)
        check_rate('meta_drop_rate', meta_drop_rate)
        # Used by the constructor of the base class.
        self.temperature = temperature
        self.meta_hidden_dims = meta_hidden_dims
        self.meta_drop_rate = meta_drop_rate
        self.stage_norms = stage_norms
        self.init_values = init_values
        self.shift_windows = shift_windows
        super().__init__(arch, pretrained_window_sizes=0, **options)

    def stage_options(self, stage: int) -> dict[str, Any]:
        """See `SwinTransformerV2.stage_options`."""
        is_last = stage == len(self.arch.depths) - 1
        return dict(
            attention=partial(
                WindowAttentionCR,
                temperature=self.temperature,
                meta_hidden_dims=self.meta_hidden_dims,
                meta_drop=self.meta_drop_rate,
            ),
            merging=PreNormPatchMerging,
            ends_with_norm=self.stage_norms == 'all' or (self.stage_norms == 'last' and is_last),
            shift_windows=self.shift_windows,
        )
