"""Cosine attention inside windows: one function, several backends."""

from swinv2_mm.ops.execution import choose_backend
from swinv2_mm.ops.window_attention.dispatch import window_attention
from swinv2_mm.ops.window_attention.partition import Band, Pair, Tile, WindowPartition

__all__ = [
    'Band',
    'Pair',
    'Tile',
    'WindowPartition',
    'choose_backend',
    'window_attention',
]
