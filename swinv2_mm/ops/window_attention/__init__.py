"""Cosine attention inside windows: one function, several backends."""

from swinv2_mm.ops.execution import choose_backend
from swinv2_mm.ops.window_attention.dispatch import window_attention
from swinv2_mm.ops.window_attention.partition import (
    Band,
    Pair,
    SymbolicPartition,
    WindowPartition,
    has_symbolic_size,
)

__all__ = [
    'Band',
    'Pair',
    'SymbolicPartition',
    'WindowPartition',
    'choose_backend',
    'has_symbolic_size',
    'window_attention',
]
