"""Layers of the backbones. Features are channels-last, `(B, H, W, C)`, from patch embedding to output norm."""

from swinv2_mm.models.layers.attention import WindowAttention
from swinv2_mm.models.layers.attention_cr import TEMPERATURES, WindowAttentionCR
from swinv2_mm.models.layers.block import DropPath, SwinBlock, SwinStage
from swinv2_mm.models.layers.deformable_block import DeformableSwinBlock
from swinv2_mm.models.layers.output_norm import apply_output_norm, build_output_norm
from swinv2_mm.models.layers.patch import PatchEmbed, PatchMerging, PreNormPatchMerging
from swinv2_mm.models.layers.position_bias import ContinuousPositionBias, SignedLogPositionBias

__all__ = [
    'TEMPERATURES',
    'ContinuousPositionBias',
    'DeformableSwinBlock',
    'DropPath',
    'PatchEmbed',
    'PatchMerging',
    'PreNormPatchMerging',
    'SignedLogPositionBias',
    'SwinBlock',
    'SwinStage',
    'WindowAttention',
    'WindowAttentionCR',
    'apply_output_norm',
    'build_output_norm',
]
