"""A stand-in for mmcv's compiled operators, for environments where mmcv was installed without them.

A plain `pip install` of mmcv does not include `mmcv._ext`, and `import mmdet.models` fails without it. `install()`
adds a module of that name whose operators use torchvision's kernels and torch. It has an attribute for every operator
name, because `mmcv.ops` checks all of them on import; one that is not provided raises an error when it is called.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

EXTENSION = 'mmcv._ext'

# Operator -> the module of this package that implements it, imported when the operator is first looked up, so that
# install() itself loads neither torch nor torchvision.
_PROVIDERS = {
    'get_compiler_version': 'info',
    'get_compiling_cuda_version': 'info',
    'nms': 'nms',
    'nms_match': 'nms',
    'softnms': 'softnms',
    'roi_align_forward': 'roi_align',
    'roi_align_backward': 'roi_align',
    'deform_conv_forward': 'deform_conv',
    'deform_conv_backward_input': 'deform_conv',
    'deform_conv_backward_parameters': 'deform_conv',
    'modulated_deform_conv_forward': 'deform_conv',
    'modulated_deform_conv_backward': 'deform_conv',
    'ms_deform_attn_forward': 'deform_attn',
    'ms_deform_attn_backward': 'deform_attn',
    'sigmoid_focal_loss_forward': 'focal_loss',
    'sigmoid_focal_loss_backward': 'focal_loss',
}


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


class StandIn(ModuleType):
    """The module that is installed as `mmcv._ext`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Operators do not start with an underscore, but importlib, pickle and inspect look up such names.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        if name not in _PROVIDERS:
            return _missing(name)
        operator = getattr(importlib.import_module(f'{__name__}.{_PROVIDERS[name]}'), name)
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
        importlib.import_module(f'{__name__}.mend').mend_failed_imports()
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
