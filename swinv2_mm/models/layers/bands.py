"""Inference on a few rows of tokens at a time, so that intermediate results stay in the cache.

This also bounds memory: intermediate results of a layer or block exist for one band at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from swinv2_mm.ops.execution import runs_in_bands
from swinv2_mm.ops.window_attention import has_symbolic_size

# Elements of a band (tokens times channels), unless a row of windows is larger. Half or twice as many make little
# difference; with fewer, matrix products get too small.
BAND_NUMBERS = 8192 * 96


def in_bands(
    module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, axis: int, rows: int
) -> Tensor:
    """Return `forward(x)`, `(B, H, W, C)`, of a module that maps `rows` rows of its input to one row of tokens.

    It runs in bands where possible; `axis` is that of the rows in `x`.
    """
    if has_symbolic_size(x):
        return forward(x)
    step = max(1, BAND_NUMBERS * x.shape[axis] // max(1, x.numel() * rows)) * rows
    if step >= x.shape[axis] or not runs_in_bands(module, x):
        return forward(x)
    parts = x.split(step, dim=axis)
    first = forward(parts[0])
    out = first.new_empty(len(first), -(-x.shape[axis] // rows), *first.shape[2:])
    places = out.split(step // rows, dim=1)
    places[0].copy_(first)
    for place, part in zip(places[1:], parts[1:]):
        place.copy_(forward(part))
    return out
