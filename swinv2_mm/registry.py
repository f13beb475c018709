"""Registries of this package.

`MODELS`, `DATASETS`, `TRANSFORMS`, `HOOKS`, `OPTIM_WRAPPERS` and `VISBACKENDS` are children of mmengine's root
registries with the scope `swinv2_mm`. mmengine imports their modules when a config names one, so
`type='swinv2_mm.SwinTransformerV2'` builds the backbone in every scope.

The root registry also has the backbones under their plain names, for scopes without a class of that name. In the scope
of MMPretrain, the plain name `SwinTransformerV2` builds the class of MMPretrain.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import VISBACKENDS as ROOT_VISBACKENDS
from mmengine.registry import Registry

BACKBONES = ('SwinTransformerV2', 'SwinTransformerV2CR')
MODELS = Registry('model', parent=ROOT_MODELS, scope='swinv2_mm', locations=['swinv2_mm.models'])
DATASETS = Registry(
    'dataset',
    parent=ROOT_DATASETS,
    scope='swinv2_mm',
    locations=['swinv2_mm.datasets.classification'],
)
TRANSFORMS = Registry(
    'transform',
    parent=ROOT_TRANSFORMS,
    scope='swinv2_mm',
    locations=['swinv2_mm.datasets.multiband'],
)
HOOKS = Registry(
    'hook',
    parent=ROOT_HOOKS,
    scope='swinv2_mm',
    locations=['swinv2_mm.engine.hooks', 'swinv2_mm.apis.sample_pictures'],
)
VISBACKENDS = Registry(
    'vis_backend',
    parent=ROOT_VISBACKENDS,
    scope='swinv2_mm',
    locations=['swinv2_mm.engine.curves'],
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=ROOT_OPTIM_WRAPPERS,
    scope='swinv2_mm',
    locations=['swinv2_mm.engine.autocast'],
)

T = TypeVar('T', bound=type)


def _importing(name: str) -> Callable[..., Any]:
    """Return a function that imports the backbone `name` and builds it."""

    def build(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module('swinv2_mm.models'), name)(*args, **options)

    build.__name__ = build.__qualname__ = name
    return build


for _name in BACKBONES:
    if _name not in ROOT_MODELS.module_dict:  # keep existing entries
        ROOT_MODELS.register_module(name=_name, module=_importing(_name))


def register_everywhere(cls: T) -> T:
    """Register the class `cls` under its name, with and without the `swinv2_mm.` prefix (decorator)."""
    MODELS.register_module(module=cls)
    if ROOT_MODELS.module_dict[cls.__name__].__module__ == __name__:
        ROOT_MODELS.register_module(module=cls, force=True)
    return cls
