"""A stand-in for mmcv's compiled operators, for environments where mmcv was installed without them.

A plain `pip install` of mmcv does not include `mmcv._ext`, and `import mmdet.models` fails without it. `install()`
adds a module of that name whose operators use torchvision's kernels and torch. It has an attribute for every operator
name, because `mmcv.ops` checks all of them on import; one that is not provided raises an error when it is called.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, NoReturn

EXTENSION = 'mmcv._ext'

# What the operators run on.
_PROVIDERS = {
    **dict.fromkeys(
        (
            'nms',
            'nms_match',
            'roi_align_forward',
            'roi_align_backward',
            'roi_pool_forward',
            'roi_pool_backward',
            'deform_conv_forward',
            'deform_conv_backward_input',
            'deform_conv_backward_parameters',
            'modulated_deform_conv_forward',
            'modulated_deform_conv_backward',
        ),
        "torchvision's kernels",
    ),
    **dict.fromkeys(
        (
            'ms_deform_attn_forward',
            'ms_deform_attn_backward',
            'sigmoid_focal_loss_forward',
            'sigmoid_focal_loss_backward',
            'softmax_focal_loss_forward',
            'softmax_focal_loss_backward',
            'carafe_forward',
            'carafe_backward',
            'masked_im2col_forward',
            'masked_col2im_forward',
            'bbox_overlaps',
            'box_iou_rotated',
            'nms_rotated',
        ),
        "torch's operators",
    ),
    'softnms': "torch's operators, on the CPU",
    'get_compiler_version': 'Python',
    'get_compiling_cuda_version': 'Python',
}

_MODULES = dict(
    roi_align=('roi_align_forward', 'roi_align_backward'),
    roi_pool=('roi_pool_forward', 'roi_pool_backward'),
    boxes=('bbox_overlaps', 'nms', 'nms_match', 'softnms'),
    rotated_boxes=('box_iou_rotated', 'nms_rotated'),
    deform_conv=(
        'deform_conv_forward',
        'deform_conv_backward_input',
        'deform_conv_backward_parameters',
        'modulated_deform_conv_forward',
        'modulated_deform_conv_backward',
    ),
)
"""Where operators are, if not in `operators`."""

_SLOW_ON_GPUS = ('ms_deform_attn_forward', 'carafe_forward', 'nms_match', 'nms_rotated')


def _missing(name: str) -> Callable[..., NoReturn]:
    """Return an operator that the stand-in does not provide: it raises an error when it is called."""

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'mmcv operator {name!r} needs an mmcv with compiled operators. This environment has mmcv '
            'without them, and the stand-in of swinv2_mm provides only: '
            f'{", ".join(sorted(_PROVIDERS))}. To compile mmcv against the torch that is installed (about 20 '
            'minutes on two cores, and mmcv 2.3 needs torch < 2.14): `pip install --force-reinstall --no-deps '
            '--no-build-isolation --no-cache-dir --no-binary onedl-mmcv onedl-mmcv`. For the original mmcv, `mim '
            'install mmcv` finds a wheel built for many versions of torch. A compiled mmcv is then used instead '
            'of the stand-in.'
        )

    return missing


def _warning_on_gpus(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator with a warning when it is first called on a GPU."""

    @functools.wraps(operator)
    def warning(first: Any, *others: Any, **settings: Any) -> Any:
        if first.is_cuda:
            from swinv2_mm.ops.optional import warn_once

            warn_once(
                f"mmcv's operator {operator.__name__!r} runs on several of torch's operators, since mmcv has no "
                'compiled ones: on a GPU a compiled mmcv is faster, see docs/limits.md'
            )
        return operator(first, *others, **settings)

    return warning


class StandIn(ModuleType):
    """The module that is installed as `mmcv._ext`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Operators do not start with an underscore, but importlib, pickle and inspect look up such names.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        if name not in _PROVIDERS:
            return _missing(name)
        # Imported here, so that `install` itself loads neither torch nor torchvision.
        modules = (module for module, names in _MODULES.items() if name in names)
        module = next(modules, 'operators')
        operator = getattr(importlib.import_module(f'{__name__}.{module}'), name)
        if name in _SLOW_ON_GPUS:
            operator = _warning_on_gpus(operator)
        setattr(self, name, operator)  # the next lookup does not call `__getattr__`
        return operator


class _StandInLoader(Loader):
    """Loader of the stand-in's spec: mmcv checks for a loader to find out whether it has operators."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the operators are looked up by name."""


def install() -> bool:
    """Install the stand-in as `mmcv._ext` if mmcv is installed without compiled operators; return whether it is there.

    Cheap and idempotent; does not import mmcv, torch or torchvision. Call it before anything imports `mmcv.ops`.
    """
    if EXTENSION in sys.modules:
        return isinstance(sys.modules[EXTENSION], StandIn)
    if not _mmcv_lacks_operators():
        return False
    spec = ModuleSpec(EXTENSION, _StandInLoader(), origin=f'{__name__} (torchvision kernels)')
    extension = importlib.util.module_from_spec(spec)
    sys.modules[EXTENSION] = extension
    if 'mmcv' in sys.modules:
        sys.modules['mmcv']._ext = extension  # type: ignore[attr-defined]
    if any(name.startswith(('mmdet.', 'mmseg.')) for name in sys.modules):
        _mend_failed_imports()
    return True


def _mmcv_lacks_operators() -> bool:
    """Return whether mmcv is installed without an `_ext` that can be imported. Does not import mmcv."""
    try:
        package = importlib.util.find_spec('mmcv')
    except ValueError:  # a module without a spec, such as a mock
        return False
    # A folder called `mmcv` on the path (such as a clone of its repository) has a spec without origin.
    if package is None or package.origin is None or package.submodule_search_locations is None:
        return False
    compiled = PathFinder.find_spec(EXTENSION, list(package.submodule_search_locations))
    return compiled is None or compiled.origin is None


# Names that mmseg sets to None. Other names that are None are left alone.
_NONE_IN_MMSEG = ('CrissCrossAttention', 'PSAMask', 'point_sample', '_sigmoid_focal_loss')


def _mend_failed_imports() -> None:
    """Repair mmdet and mmseg modules that were imported before mmcv had operators.

    OneDL's versions catch the failed import of `mmcv.ops` and use substitutes: in mmdet a function or class that raises
    "requires mmcv to be compiled with ops" when it is used, in mmseg None.
    """
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
        isinstance(constant, str) and 'mmcv to be compiled' in constant
        for constant in function.__code__.co_consts
    )
