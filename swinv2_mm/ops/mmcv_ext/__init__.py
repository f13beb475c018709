"""A stand-in for mmcv's compiled operators, for environments where mmcv was installed without them.

A plain `pip install` of mmcv carries no `mmcv._ext`, and `import mmdet.models` fails without it. `install()`
puts a module of that name in place whose operators run on torchvision's kernels and on torch. Where mmcv has
compiled operators they are left alone, and without mmcv nothing happens.

The module answers every operator name, because `mmcv.ops` checks all of its names as it is imported; an
operator that is not provided here raises `NotImplementedError` once it is called.
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
_ORIGIN = f'{__name__} (torchvision kernels)'

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


class MissingOperator:
    """An operator of compiled mmcv that the stand-in does not have: it can be looked up, but not called."""

    def __init__(self, name: str) -> None:
        self.name = self.__name__ = name

    def __repr__(self) -> str:
        return f'<{EXTENSION}.{self.name}: needs compiled mmcv>'

    def __reduce__(self) -> tuple[Callable[[str], Callable[..., Any]], tuple[str]]:
        return _operator, (self.name,)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'mmcv operator {self.name!r} needs an mmcv with compiled operators. This environment has mmcv '
            'without them, and the stand-in of swinv2_mm provides only: '
            f'{", ".join(sorted(_PROVIDERS))}. To compile mmcv against the torch that is installed (about 20 '
            'minutes on two cores, and mmcv 2.3 needs torch < 2.14): `pip install --force-reinstall --no-deps '
            '--no-build-isolation --no-cache-dir --no-binary onedl-mmcv onedl-mmcv`. For the original mmcv, `mim '
            'install mmcv` finds a wheel built for many versions of torch. A compiled mmcv is then used instead '
            'of the stand-in.'
        )


class StandIn(ModuleType):
    """The module that is placed at `mmcv._ext`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # No operator starts with an underscore. Import machinery, pickle and inspect probe for such names and
        # must be told the truth.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        operator: Callable[..., Any]
        if name in _PROVIDERS:
            provider = importlib.import_module(f'{__name__}.{_PROVIDERS[name]}')
            operator = getattr(provider, name)
        else:
            operator = MissingOperator(name)
        setattr(self, name, operator)  # the next lookup does not come here
        return operator

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PROVIDERS})

    def __reduce__(self) -> tuple[Callable[[], ModuleType], tuple[()]]:
        # A module is not picklable by itself. By name it survives a copy and the way into a worker process.
        return _extension, ()


class _StandInLoader(Loader):
    """Gives the stand-in's spec a loader: mmcv asks for one to tell whether it has operators."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the operators are looked up by name."""


def install() -> bool:
    """Place the stand-in at `mmcv._ext` if mmcv is there and has no compiled operators of its own.

    Cheap and idempotent; imports neither mmcv nor torch nor torchvision. Call it before anything imports
    `mmcv.ops`; what mmdet or mmseg already put in the place of a failed import is mended (see `mend`).

    Returns:
        True if the stand-in is in place now, False if mmcv has compiled operators or is not installed.
    """
    if EXTENSION in sys.modules:
        return _is_stand_in(sys.modules[EXTENSION])
    if not _mmcv_lacks_operators():
        return False
    spec = ModuleSpec(EXTENSION, _StandInLoader(), origin=_ORIGIN)
    extension = importlib.util.module_from_spec(spec)
    sys.modules[EXTENSION] = extension
    if 'mmcv' in sys.modules:
        sys.modules['mmcv']._ext = extension  # type: ignore[attr-defined]
    if any(name.startswith(('mmdet.', 'mmseg.')) for name in sys.modules):
        importlib.import_module(f'{__name__}.mend').mend_failed_imports()
    return True


def _is_stand_in(module: ModuleType) -> bool:
    # By origin and not by class: the class is another one after a reload of this module.
    return getattr(getattr(module, '__spec__', None), 'origin', None) == _ORIGIN


def _mmcv_lacks_operators() -> bool:
    """Whether mmcv is installed without an `_ext` that this interpreter could import. Does not import mmcv."""
    try:
        package = importlib.util.find_spec('mmcv')
    except ValueError:  # a hand-made module of that name, without a spec
        return False
    # A mere folder called `mmcv` on the path (a clone of its repository, say) has a spec without origin.
    if package is None or package.origin is None or package.submodule_search_locations is None:
        return False
    compiled = PathFinder.find_spec(EXTENSION, list(package.submodule_search_locations))
    return compiled is None or compiled.origin is None


def _extension() -> ModuleType:
    """What `mmcv._ext` is in this process: what a pickled stand-in becomes."""
    install()
    return importlib.import_module(EXTENSION)


def _operator(name: str) -> Callable[..., Any]:
    """What an operator is in this process: what a pickled missing one becomes."""
    operator: Callable[..., Any] = getattr(_extension(), name)
    return operator
