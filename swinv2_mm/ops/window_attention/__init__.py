"""Cosine attention inside windows: one function, several backends."""

from swinv2_mm.ops.window_attention.dispatch import (
    available_backends,
    check_backend,
    choose_backend,
    window_attention,
)
from swinv2_mm.ops.window_attention.partition import Tile, WindowPartition

__all__ = [
    'Tile',
    'WindowPartition',
    'available_backends',
    'check_backend',
    'choose_backend',
    'window_attention',
]
