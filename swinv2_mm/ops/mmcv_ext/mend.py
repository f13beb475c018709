"""Repair mmdet and mmseg modules that were imported before mmcv had operators.

OneDL's versions catch the failed import of `mmcv.ops` and use substitutes: in mmdet a function or class that raises
"requires mmcv to be compiled with ops" when it is used, in mmseg None. This module replaces them by the operators.
"""

import sys
from types import FunctionType, ModuleType
from typing import Any

# Part of the message that mmdet's substitutes raise.
_COMPLAINT = 'mmcv to be compiled'
# Names that mmseg sets to None. Other names that are None are left alone.
_NONE_IN_MMSEG = frozenset(
    {'CrissCrossAttention', 'PSAMask', 'point_sample', '_sigmoid_focal_loss'}
)


def mend_failed_imports() -> None:
    """Replace the substitutes in all loaded mmdet and mmseg modules. Call it after `mmcv._ext` is installed."""
    substitutes = [
        (module, name)
        for module_name, module in list(sys.modules.items())
        if module_name.startswith(('mmdet.', 'mmseg.'))
        for name, value in list(vars(module).items())
        if _is_substitute(module, name, value)
    ]
    if not substitutes:
        return
    import mmcv.ops

    for module, name in substitutes:
        # `from mmcv.ops import sigmoid_focal_loss as _sigmoid_focal_loss`, and `line_nms as nms` where the
        # substitute is None and stays.
        wanted = getattr(mmcv.ops, name.lstrip('_'), None)
        if wanted is not None:
            setattr(module, name, wanted)


def _is_substitute(module: ModuleType, name: str, value: Any) -> bool:
    if value is None:
        return module.__name__.startswith('mmseg.') and name in _NONE_IN_MMSEG
    if getattr(value, '__module__', None) != module.__name__:
        return False
    function = value.__dict__.get('__init__') if isinstance(value, type) else value
    return isinstance(function, FunctionType) and any(
        isinstance(constant, str) and _COMPLAINT in constant
        for constant in function.__code__.co_consts
    )
