"""Backbones and their layers."""

from swinv2_mm.models.backbones import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.models.builders import (
    swin_transformer_v2,
    swin_transformer_v2_b,
    swin_transformer_v2_g,
    swin_transformer_v2_h,
    swin_transformer_v2_l,
    swin_transformer_v2_s,
    swin_transformer_v2_t,
)
from swinv2_mm.models.offset_drawing import draw_offsets, last_offsets

__all__ = [
    'SwinTransformerV2',
    'SwinTransformerV2CR',
    'draw_offsets',
    'last_offsets',
    'swin_transformer_v2',
    'swin_transformer_v2_b',
    'swin_transformer_v2_g',
    'swin_transformer_v2_h',
    'swin_transformer_v2_l',
    'swin_transformer_v2_s',
    'swin_transformer_v2_t',
]
