"""Backbones, registered for every OpenMMLab scope on import."""

from swinv2_mm.models.backbones.swin_transformer_v2 import SwinTransformerV2

__all__ = ['SwinTransformerV2']
