"""Backbones, registered for every OpenMMLab scope on import."""

from swinv2_mm.models.backbones.swin_transformer_v2 import SwinTransformerV2
from swinv2_mm.models.backbones.swin_transformer_v2_cr import SwinTransformerV2CR

__all__ = ['SwinTransformerV2', 'SwinTransformerV2CR']
