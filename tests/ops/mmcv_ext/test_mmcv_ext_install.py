"""Test when the stand-in for mmcv's operators is installed, and its behaviour as a module."""

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from swinv2_mm.ops import mmcv_ext

ROOT = Path(mmcv_ext.__file__).parents[3]
PLACED = mmcv_ext.install()
needs_stand_in = pytest.mark.skipif(
    not PLACED, reason='mmcv has compiled operators: its stand-in is not in use'
)


@pytest.fixture
def extension():
    return importlib.import_module('mmcv._ext')


def run_python(code, *path, flags=()):
    """Run code in a new interpreter with `path` first in `sys.path`; return its output."""
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(map(str, path)),
        'OMP_NUM_THREADS': '1',
    }
    done = subprocess.run(
        [sys.executable, *flags, '-c', textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Loads the module without the package, whose import calls install().
LOAD_ALONE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location('swinv2_mm.ops.mmcv_ext', {mmcv_ext.__file__!r})
mmcv_ext = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mmcv_ext)
"""


def fake_mmcv(folder, *files):
    package = folder / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("install() must not import mmcv")')
    for name in files:
        (package / name).write_bytes(b'')
    return folder


def install_beside(folder, before=''):
    code = (
        LOAD_ALONE
        + before
        + "print(mmcv_ext.install(), 'mmcv._ext' in sys.modules, 'mmcv' in sys.modules)"
    )
    return run_python(code, folder).split()


def test_compiled_operators_win(tmp_path):
    folder = fake_mmcv(tmp_path, f'_ext{EXTENSION_SUFFIXES[0]}')
    assert install_beside(folder) == ['False', 'False', 'False']


def test_operators_compiled_for_another_python_do_not_count(tmp_path):
    folder = fake_mmcv(
        tmp_path, '_ext.cpython-27-s390x-linux-gnu.so.old', '_ext.cpython-27m-s390x.so'
    )
    assert install_beside(folder) == ['True', 'True', 'False']


def test_an_extension_that_is_already_imported_is_left_alone(tmp_path):
    before = "import types; sys.modules['mmcv._ext'] = theirs = types.ModuleType('mmcv._ext');"
    code = LOAD_ALONE + before + "print(mmcv_ext.install(), sys.modules['mmcv._ext'] is theirs)"
    assert run_python(code, fake_mmcv(tmp_path)).split() == ['False', 'True']


def test_nothing_happens_without_mmcv(tmp_path):
    (tmp_path / 'mmcv').mkdir()  # a folder of that name is not mmcv
    code = LOAD_ALONE + "print(mmcv_ext.install(), 'mmcv._ext' in sys.modules)"
    assert run_python(code, tmp_path, flags=('-S',)).split() == ['False', 'False']


def test_installing_imports_no_heavy_package(tmp_path):
    code = (
        LOAD_ALONE
        + "mmcv_ext.install(); print({'torch', 'torchvision', 'numpy', 'mmcv'} & set(sys.modules))"
    )
    assert run_python(code, fake_mmcv(tmp_path)).strip() == 'set()'


@needs_stand_in
def test_installing_again_changes_nothing(extension):
    assert mmcv_ext.install() is True
    assert importlib.import_module('mmcv._ext') is extension


@needs_stand_in
def test_openmmlab_believes_that_mmcv_has_operators(extension):
    from mmengine.utils.dl_utils import mmcv_full_available

    spec = importlib.util.find_spec('mmcv._ext')
    assert spec is extension.__spec__
    assert spec.name == 'mmcv._ext' and spec.loader is not None and spec.parent == 'mmcv'
    assert mmcv_full_available()


@needs_stand_in
def test_module_probes_are_told_the_truth(extension):
    for name in ('__path__', '__file__', '__wrapped__', '__torch_function__', '__all__'):
        assert not hasattr(extension, name), name
    with pytest.raises(AttributeError, match='__path__'):
        extension.__path__  # noqa: B018
    assert inspect.ismodule(extension) and inspect.unwrap(extension) is extension
    assert extension.__name__ == 'mmcv._ext' and extension.__package__ == 'mmcv'


@needs_stand_in
def test_an_operator_that_is_missing_says_so_when_it_is_called():
    import torch
    from mmcv.ops import PSAMask

    mask = PSAMask('collect', (3, 3))  # building works
    with pytest.raises(NotImplementedError) as caught:
        mask(torch.rand(1, 9, 2, 2))
    message = str(caught.value)
    assert "'psamask_forward'" in message
    assert 'pip install' in message and '--no-build-isolation' in message
    assert 'roi_align_forward' in message and 'softnms' in message  # lists the provided operators


@needs_stand_in
def test_every_operator_it_promises_is_there(extension):
    operators = list(mmcv_ext._PROVIDERS)
    assert len(operators) > 10
    for name in operators:
        operator = getattr(extension, name)
        assert inspect.isfunction(operator) and operator.__name__ == name
        assert operator.__module__.startswith('swinv2_mm.ops.')


WORKERS = """
import swinv2_mm  # in a spawned worker the main module is imported again, and with it the stand-in
import torch
from torch.utils.data import DataLoader, Dataset

class Boxes(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        import mmcv._ext
        from mmcv.ops import nms
        boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 10., 10.], [20., 20., 30., 30.]])
        return nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)[1]

if __name__ == '__main__':
    for method in ('fork', 'spawn'):
        loader = DataLoader(Boxes(), num_workers=1, multiprocessing_context=method)
        print([kept.flatten().tolist() for kept in loader])
"""


@needs_stand_in
def test_operators_work_in_forked_and_spawned_data_workers(tmp_path):
    script = tmp_path / 'workers.py'
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split('\n')[:2] == ['[[1, 2], [1, 2]]'] * 2


# Both libraries import mmcv's operators in their data structures and tools.
LATE = """
import numpy as np
import mmdet.structures.mask.structures as masks
import mmseg.utils.mask_classification as seg
assert 'compiled' in str(masks.roi_align.__code__.co_consts), 'mmdet no longer catches the failed import'
assert seg.point_sample is None, 'mmseg no longer catches the failed import'
import swinv2_mm
import mmcv.ops
assert masks.roi_align is mmcv.ops.roi_align and seg.point_sample is mmcv.ops.point_sample
square = np.zeros((1, 8, 8), np.uint8)
square[:, 2:6, 2:6] = 1
crop = masks.BitmapMasks(square, 8, 8).crop_and_resize(
    np.array([[2., 2., 6., 6.]], np.float32), (2, 2), np.array([0]), 'cpu')
print(crop.masks.astype(int).tolist())
"""


@needs_stand_in
def test_a_library_imported_before_the_stand_in_gets_its_operators_after_all():
    assert run_python(LATE, ROOT).strip().split('\n')[-1] == '[[[1, 1], [1, 1]]]'


@needs_stand_in
def test_environment_reports_name_the_stand_in():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    from mmcv.utils import collect_env

    assert 'swinv2_mm' in get_compiler_version()
    assert get_compiling_cuda_version() == 'not available'
    assert collect_env()['MMCV Compiler'] == get_compiler_version()
