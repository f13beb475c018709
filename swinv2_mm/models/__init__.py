"""Backbones and the layers they are made of."""

from swinv2_mm.models.backbones import SwinTransformerV2

__all__ = ['SwinTransformerV2']
