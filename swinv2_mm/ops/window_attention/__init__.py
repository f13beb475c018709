"""Cosine attention inside windows: one function, several backends."""

from swinv2_mm.ops.window_attention.dispatch import (
    available_backends,
    check_backend,
    window_attention,
)

__all__ = ['available_backends', 'check_backend', 'window_attention']
