"""Registries of this package.

`MODELS`, `DATASETS`, `TRANSFORMS`, `HOOKS` and so on are children of mmengine's root
registries with the scope `swinv2_mm`. mmengine imports their modules when a config names one, so
`type='swinv2_mm.SwinTransformerV2'` builds the backbone in every scope.

The root registry also has the backbones under their plain names, for scopes without a class of that name. In the scope
of MMPretrain, the plain name `SwinTransformerV2` builds the class of MMPretrain.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine import registry
from mmengine.config.utils import MODULE2PACKAGE

BACKBONES = ('SwinTransformerV2', 'SwinTransformerV2CR')


def _child(parent: registry.Registry, *modules: str) -> registry.Registry:
    locations = [f'swinv2_mm.{module}' for module in modules]
    return registry.Registry(parent.name, parent=parent, scope='swinv2_mm', locations=locations)


MODELS = _child(registry.MODELS, 'models', 'engine.instance_tta')
DATASETS = _child(registry.DATASETS, 'datasets.classification')
TRANSFORMS = _child(registry.TRANSFORMS, 'datasets.multiband')
HOOKS = _child(
    registry.HOOKS,
    *('engine.hooks', 'engine.bad_samples', 'engine.checkpoint_hook', 'engine.curves'),
    *('engine.interrupts', 'engine.resume', 'apis.side_by_side'),
)
MODEL_WRAPPERS = _child(registry.MODEL_WRAPPERS, 'engine.sharded')
VISBACKENDS = _child(registry.VISBACKENDS, 'engine.curves')
OPTIM_WRAPPERS = _child(registry.OPTIM_WRAPPERS, 'engine.runner')
OPTIM_WRAPPER_CONSTRUCTORS = _child(registry.OPTIM_WRAPPER_CONSTRUCTORS, 'engine.optimizer')

# `_base_` and `get_config` take `swinv2_mm::NAME`, and `mmseg::NAME` also where OneDL's package is installed.
MODULE2PACKAGE.update(swinv2_mm='swinv2_mm', mmseg='mmseg')

T = TypeVar('T', bound=type)


def _importing(name: str) -> Callable[..., Any]:
    """Return a function that imports the backbone `name` and builds it."""

    def build(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module('swinv2_mm.models'), name)(*args, **options)

    build.__name__ = build.__qualname__ = name
    return build


for _name in BACKBONES:
    if _name not in registry.MODELS.module_dict:  # keep existing entries
        registry.MODELS.register_module(name=_name, module=_importing(_name))


def register_everywhere(cls: T) -> T:
    """Register the class `cls` under its name, with and without the `swinv2_mm.` prefix (decorator)."""
    MODELS.register_module(module=cls)
    if registry.MODELS.module_dict[cls.__name__].__module__ == __name__:
        registry.MODELS.register_module(module=cls, force=True)
    return cls
