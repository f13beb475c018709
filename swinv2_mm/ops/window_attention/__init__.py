"""Cosine attention inside windows: one function, several backends."""

from swinv2_mm.ops.execution import check_backend, choose_backend
from swinv2_mm.ops.window_attention.dispatch import window_attention
from swinv2_mm.ops.window_attention.partition import Band, Tile, WindowPartition

__all__ = [
    'Band',
    'Tile',
    'WindowPartition',
    'check_backend',
    'choose_backend',
    'window_attention',
]
