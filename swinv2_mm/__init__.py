"""Swin Transformer V2 backbones for MMDetection, MMSegmentation and MMPretrain.

Importing this package registers the backbones by name (see `swinv2_mm.registry`) and provides `mmcv._ext` where mmcv
has no compiled operators. Everything else is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swinv2_mm import registry
from swinv2_mm.ops import mmcv_ext
from swinv2_mm.version import __version__

if TYPE_CHECKING:
    from swinv2_mm.apis.predictor import Predictor
    from swinv2_mm.models import SwinTransformerV2, SwinTransformerV2CR
    from swinv2_mm.ops.linear import constant_weights

mmcv_ext.install()  # before anything can import `mmcv.ops`

__all__ = [
    'Predictor',
    'SwinTransformerV2',
    'SwinTransformerV2CR',
    '__version__',
    'constant_weights',
]


def __getattr__(name: str) -> Any:
    if name in registry.BACKBONES:
        return getattr(importlib.import_module('swinv2_mm.models'), name)
    if name == 'Predictor':
        return importlib.import_module('swinv2_mm.apis.predictor').Predictor
    if name == 'constant_weights':
        return importlib.import_module('swinv2_mm.ops.linear').constant_weights
    if name in ('checkpoints', 'models'):
        return importlib.import_module(f'swinv2_mm.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
