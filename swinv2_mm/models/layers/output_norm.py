"""Norms of the returned feature maps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_NORMS: dict[str, type[nn.Module]] = {
    'LN': nn.LayerNorm,
    'BN': nn.BatchNorm2d,
    'BN2d': nn.BatchNorm2d,
    'SyncBN': nn.SyncBatchNorm,
    'GN': nn.GroupNorm,
}


def build_output_norm(norm_cfg: Mapping[str, Any], dim: int) -> nn.Module:
    """Build the norm of a stage's output of `dim` channels from an OpenMMLab norm config.

    Raises:
        ValueError: If the type is missing or unknown.
    """
    options = dict(norm_cfg)
    kind, requires_grad = options.pop('type', None), options.pop('requires_grad', True)
    if kind not in _NORMS:
        raise ValueError(
            f'norm_cfg has type {kind!r}: expected one of {", ".join(_NORMS)}, or norm_cfg=None'
        )
    if kind == 'GN':
        options['num_channels'] = dim  # its first argument is not the number of channels
        return nn.GroupNorm(**options).requires_grad_(requires_grad)
    return _NORMS[kind](dim, **options).requires_grad_(requires_grad)


def apply_output_norm(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Normalise `(B, H, W, C)` and return it channels-first, `(B, C, H, W)`."""
    if isinstance(norm, nn.LayerNorm):
        return norm(x).permute(0, 3, 1, 2).contiguous()
    x = x.permute(0, 3, 1, 2).contiguous()
    return x if norm is None else norm(x)
