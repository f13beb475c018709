"""What this installation can do, and what is wrong with it.

The module itself imports only the standard library, and `tools/doctor.py` loads it by its path: it must also work where
torch or this package cannot be imported.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIBRARIES = {
    'numpy': 'numpy==2.2.6',
    'cv2': 'opencv-python==4.12.0.88',
    'torch': 'torch>=2.4',
    'torchvision': 'torchvision>=0.19',
    'llvmlite': 'llvmlite>=0.45',
    'mmengine': 'onedl-mmengine>=0.10.12',
    'mmcv': 'onedl-mmcv>=2.3.6',
    'mmdet': 'onedl-mmdetection>=3.5.1',
    'mmseg': 'onedl-mmsegmentation>=1.4.2',
    'supervision': 'supervision>=0.26',
    'swinv2_mm': 'swinv2-mm',
}
"""Packages that everything needs, and what pip calls them."""
_IMPORTS = (
    *('numpy', 'cv2', 'torch', 'torchvision', 'mmengine', 'mmcv', 'swinv2_mm', 'swinv2_mm.models'),
    *('mmcv.ops', 'mmpretrain.models', 'mmdet.models', 'mmseg.models', 'supervision'),
)
"""What is imported, in this order: `swinv2_mm` provides the operators that the later ones need."""
EXTRAS = {
    'classification': {'mmpretrain': 'onedl-mmpretrain', 'sklearn': 'scikit-learn'},
    'export': {name: name for name in ('onnx', 'onnxscript', 'onnxruntime', 'openvino', 'nncf')},
    'geo': {'rasterio': 'rasterio'},
    'web': {'gradio': 'gradio'},
}
"""The optional dependencies of `pyproject.toml`: packages, and what pip calls them."""
_ALSO = ('timm', 'triton', 'transformers')
_LIGHT = "pip install --force-reinstall --no-deps onedl-mmcv, whose operators run on torchvision's kernels"
_REMEDIES = {
    r'libGL|libgthread|libEGL': 'pip uninstall -y opencv-python opencv-python-headless; pip install '
    'opencv-python-headless==4.12.0.88 (needs no window system)',
    r'torchvision::nms|torchvision.*(undefined symbol|partially init|_C)': 'torch and torchvision belong to different '
    'releases or builds: pip install --force-reinstall torch==2.14.1 torchvision==0.29.1',
    r'mmcv.*(undefined symbol|cannot open shared|_ext)': f'mmcv was compiled for another torch: {_LIGHT}',
    r'MMCV==|MMEngine==|mmcv.*incompatible': "the original packages check for versions; use OneDL's: pip uninstall -y "
    'mmcv mmcv-lite mmengine mmdet mmsegmentation mmpretrain; pip install onedl-mmengine onedl-mmcv onedl-mmdetection '
    'onedl-mmsegmentation',
    r'multiarray|dtype size changed|NumPy 1\.x|numpy\.(core|_core)': "pip install 'numpy==2.2.6' "
    "'opencv-python==4.12.0.88'",
}
"""Regular expressions for what an import says, and what to do."""
_REMEDY_OF_TRANSFORMERS = (
    "mmpretrain does not work with transformers 5: pip install 'transformers<5', or "
    'pip uninstall -y onedl-mmpretrain'
)
_KERNELS_NEED = {
    'llvmlite': "pip install 'llvmlite>=0.45'",
    'package triton': 'pip install triton',
    'C compiler': 'apt install gcc',
}
"""Parts of the reasons why kernels do not run, and what to do."""
_FEATURES = ('avx2', 'fma', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_tile', 'amx_bf16')


Found = Callable[[str, str, str], None]


def examine() -> dict[str, Any]:
    """Return versions, devices, kernels, operators of mmcv, extras and problems."""
    problems: list[dict[str, str]] = []

    def found(severity: str, text: str, remedy: str) -> None:
        problems.append(dict(severity=severity, problem=text, remedy=remedy))

    installed = importlib.metadata.packages_distributions()
    owners = {package: sorted(set(names)) for package, names in installed.items()}
    extras = {name: _extra(packages) for name, packages in EXTRAS.items()}
    wanted = [*LIBRARIES, *(package for packages in EXTRAS.values() for package in packages)]
    _check_packages(owners, wanted, found)
    usable = _check_imports(found)
    report = dict(
        python=platform.python_version(),
        system=platform.platform(),
        versions={name: _versions(owners[name]) for name in (*wanted, *_ALSO) if name in owners},
        cpu=_cpu(),
        devices={},
        mmcv={},
        extras=extras,
        problems=problems,
    )  # fmt: skip
    if 'torch' in usable:
        _check_torch(found)
    if {'swinv2_mm.models', 'mmcv.ops'} <= usable:
        report['mmcv'] = _operators()
        report['devices'] = _devices(found)
    return report


def _versions(names: list[str]) -> str:
    """Return names and versions of distributions."""
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)


def _extra(packages: dict[str, str]) -> dict[str, Any]:
    """Return which packages of an extra are missing, and how to install them."""
    specs = {pip: importlib.util.find_spec(name) for name, pip in packages.items()}
    # A folder without __init__.py is what an interrupted pip leaves.
    missing = [pip for pip, spec in specs.items() if spec is None or spec.origin is None]
    return dict(missing=missing, install=f'pip install {" ".join(missing)}' if missing else None)


def _check_packages(owners: dict[str, list[str]], wanted: list[str], found: Found) -> None:
    """Find packages that are installed twice, and versions that do not go together."""
    for package in wanted:
        names = owners.get(package, [])
        versions = {importlib.metadata.version(name) for name in names}
        if len(names) > 1 and (package != 'cv2' or len(versions) > 1):
            keep = next((name for name in names if name.startswith('onedl-')), names[0])
            found(
                'error' if keep.startswith('onedl-') else 'warning',
                f'{_versions(names)} own the same folder {package}',
                f'pip uninstall -y {" ".join(names)}; pip install {keep}',
            )
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    ours = {name for package in wanted for name in owners.get(package, [])}
    for name in sorted(ours):
        for requirement in map(Requirement, importlib.metadata.requires(name) or ()):
            if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
                continue
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                version = importlib.metadata.version(requirement.name)
                if not requirement.specifier.contains(version, prereleases=True):
                    found(
                        'warning',
                        f'{name} requires {requirement.name}{requirement.specifier}, and {version} is installed',
                        f"pip install '{requirement.name}{requirement.specifier}'",
                    )


def _check_imports(found: Found) -> set[str]:
    """Import the libraries; return those that can be."""
    usable, reasons = set(), set()
    for module in _IMPORTS:
        name = module.partition('.')[0]
        if name == 'mmpretrain' and importlib.util.find_spec(name) is None:
            continue
        try:
            with _quiet():
                importlib.import_module(module)
        except Exception as error:  # a broken library raises anything
            reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
            if reason not in reasons:  # libraries import one another
                reasons.add(reason)
                text = f'{module} cannot be imported: {reason}'
                found('error', text, _remedy(name, text))
        else:
            usable.add(module)
    return usable


def _remedy(name: str, text: str) -> str:
    """Return what to do about a library that cannot be imported."""
    for pattern, remedy in _REMEDIES.items():
        if re.search(pattern, text):
            return remedy
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # MMDetection and MMSegmentation import MMPretrain where it is installed.
        release = int(importlib.metadata.version('transformers').split('.')[0])
        if release > 4 and name in ('mmpretrain', 'mmdet', 'mmseg'):
            return _REMEDY_OF_TRANSFORMERS
    pip = (LIBRARIES | EXTRAS['classification'])[name]
    return f"pip install --force-reinstall --no-deps '{pip}'"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what libraries print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _cpu() -> dict[str, Any]:
    """Return the name, the cores that this process may use, and the instruction sets of the processor."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        text = ''
    model = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
    flags = re.search(r'^flags\s*: (.*)$', text, re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return dict(
        name=model[1] if model else platform.processor() or platform.machine(),
        cores=cores,
        instructions=[name for name in _FEATURES if flags and name in flags[1].split()],
    )


def _check_torch(found: Found) -> None:
    """Find settings of torch and of the system that a run suffers from."""
    import torch

    release = tuple(int(part) for part in torch.__version__.split('.')[:2])
    for fixed, cve in {(2, 6): 'CVE-2025-32434', (2, 10): 'CVE-2026-24747'}.items():
        if release < fixed:
            found(
                'warning',
                f'torch {torch.__version__} executes code in hostile .pth files despite weights_only=True ({cve})',
                f"pip install --upgrade 'torch>={fixed[0]}.{fixed[1]}' torchvision; until then, load .safetensors only",
            )
    if shutil.which('nvidia-smi') and not torch.cuda.is_available():
        built = f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
        found(
            'warning',
            f'there is an NVIDIA driver, and torch {torch.__version__}, built {built}, sees no GPU',
            'check nvidia-smi and CUDA_VISIBLE_DEVICES; install the build of torch for the CUDA version of the driver',
        )
    shared = Path('/dev/shm')
    if shared.is_dir() and shutil.disk_usage(shared).total < 2**30:
        found(
            'warning',
            f'/dev/shm has {shutil.disk_usage(shared).total >> 20} MB, too little for data loading processes',
            'docker run --shm-size=8g, or train_dataloader.num_workers=0',
        )


def _operators() -> dict[str, Any]:
    """Return which compiled operators mmcv has, and on what they run."""
    from mmcv import _ext

    from swinv2_mm.ops import mmcv_ext

    names: set[str] = set()
    for file in Path(importlib.import_module('mmcv').__file__ or '').with_name('ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    compiled = not isinstance(_ext, mmcv_ext.StandIn)
    if compiled:
        runs = f'mmcv, CUDA {_ext.get_compiling_cuda_version()}'
        supported = {name: runs for name in sorted(names) if hasattr(_ext, name)}
    else:
        provided = mmcv_ext._PROVIDERS
        supported = {name: provided[name] for name in sorted(names & set(provided))}
    return dict(compiled=compiled, supported=supported, missing=sorted(names - set(supported)))


def _devices(found: Found) -> dict[str, Any]:
    """Run a small backbone and operators of mmcv on each device, and return the kernels that were chosen."""
    import torch

    from swinv2_mm.engine.devices import available_devices, describe_device
    from swinv2_mm.ops import execution, private

    if not private.has_all_threads():
        found(
            'warning',
            'OpenMP starts fewer threads than torch counts on, so torch runs on one',
            'unset OMP_THREAD_LIMIT, OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS',
        )
    devices = {}
    for name in available_devices():
        device = torch.device(name)
        entry: dict[str, Any] = dict(name=describe_device(device))
        with _quiet():
            entry['attention'] = execution.choose_backend('auto', device)
            reason = {'cpu': execution.why_not_llvm, 'cuda': execution.why_not_triton}.get(
                device.type
            )
            entry['why'] = reason(device) if reason else None
        for part, remedy in _KERNELS_NEED.items():
            if part in (entry['why'] or ''):
                found('warning', f'{name}: no compiled kernels, because {entry["why"]}', remedy)
        if device.type == 'cpu':
            entry['instructions'] = torch.backends.cpu.get_cpu_capability()
            plain = torch.zeros(1, 1)
            with torch.no_grad():
                entry['linear'] = 'oneDNN' if execution.takes_onednn(plain, plain) else 'torch'
        if device.type == 'cuda':
            free, total = torch.cuda.mem_get_info(device)
            entry['capability'] = '.'.join(map(str, torch.cuda.get_device_capability(device)))
            entry['memory'] = f'{free >> 20} of {total >> 20} MB free'
        try:
            with _quiet():
                entry['difference'] = difference = _run_on(device)
            if not difference < 1e-2:
                raise ArithmeticError(f'kernels and plain operators differ by {difference:.1g}')
        except Exception as error:  # a driver raises anything
            text = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
            found('error', f'{name}: a small backbone does not run: {text}', 'please report it')
        devices[name] = entry
    return devices


def _run_on(device: Any) -> float:
    """Return by how much the chosen kernels and plain operators differ; also run NMS and RoIAlign."""
    import torch
    from mmcv.ops import nms, roi_align

    from swinv2_mm import SwinTransformerV2

    arch = dict(embed_dims=32, depths=[2], num_heads=[1])
    model = SwinTransformerV2(arch, window_size=4, out_indices=(0,)).to(device).eval()
    image = torch.linspace(-1, 1, 3 * 40 * 44).reshape(1, 3, 40, 44).to(device)
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [5, 5, 9, 9]], device=device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'norm' in name:
                weight.fill_(1.0)  # a new block starts as the identity
        features = model(image)[0]
        for block in model.layers[0].blocks:
            block.attn.backend = 'reference'
        plain = model(image)[0]
        rois = torch.cat([boxes.new_zeros(3, 1), boxes], dim=1)
        if not roi_align(plain, rois, (2, 2)).isfinite().all():
            raise ArithmeticError('RoIAlign returns values that are not finite')
    if len(nms(boxes, boxes.new_tensor([0.9, 0.8, 0.7]), 0.5)[1]) != 2:
        raise ArithmeticError('NMS keeps the wrong boxes')
    return float((features - plain).abs().max())
