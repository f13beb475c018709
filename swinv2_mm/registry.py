"""Registries of this package.

`MODELS` is a child of mmengine's root registry with the scope `swinv2_mm`, so `type='swinv2_mm.SwinTransformerV2'`
builds from every scope. `register_everywhere` also enters a class in the root registry, which mmdet and mmseg
search after their own: there the plain `type='SwinTransformerV2'` builds too. `DATASETS` is a child in the same
way; what it holds needs mmpretrain and is imported when a config names one of them, e.g. `type='swinv2_mm.Places365'`.
"""

from __future__ import annotations

from typing import TypeVar

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='swinv2_mm', locations=['swinv2_mm.models'])
DATASETS = Registry(
    'dataset',
    parent=ROOT_DATASETS,
    scope='swinv2_mm',
    locations=['swinv2_mm.datasets.classification'],
)

T = TypeVar('T', bound=type)


def register_everywhere(cls: T) -> T:
    """Class decorator: register `cls` under its name, with and without the `swinv2_mm.` prefix."""
    ROOT_MODELS.register_module(module=cls)
    MODELS.register_module(module=cls)
    return cls
