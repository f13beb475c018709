"""Compiled kernels on disk: used by the next process, replaced if damaged, left alone if others can write there."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from swinv2_mm.ops.llvm import norm_kernel, objects, runtime

REASON = runtime.why_not_here()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    return tmp_path / 'swinv2_mm_kernels'


@pytest.fixture
def stored(monkeypatch):
    """The machine code that was compiled rather than loaded."""
    codes, store = [], objects.store
    monkeypatch.setattr(objects, 'store', lambda key, code: (codes.append(code), store(key, code)))
    return codes


def check_kernel():
    """Build a kernel as a new process does, and compare its result with torch."""
    address = norm_kernel.add_norm.__wrapped__(runtime.lanes())
    x, y, out = torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.empty(2, 5, 32)
    weight, bias, counter = torch.randn(32), torch.randn(32), torch.zeros(1, dtype=torch.int64)
    eps = ctypes.c_float(1e-5)
    tensors = x, y, out, weight, bias
    arguments = [tensor.data_ptr() for tensor in tensors] + [ctypes.addressof(eps)]
    runtime.run(address, [*arguments, counter.data_ptr(), 10, 32], 1)
    torch.testing.assert_close(out, x + torch.nn.functional.layer_norm(y, (32,), weight, bias))


def test_a_kernel_is_compiled_once(folder, stored):
    check_kernel()
    check_kernel()
    assert len(stored) == 1
    (file,) = folder.iterdir()
    assert file.read_bytes().endswith(stored[0])
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize('damage', ['empty', 'cut', 'flipped', 'grown'])
def test_a_damaged_file_is_replaced(folder, stored, damage):
    check_kernel()
    (file,) = folder.iterdir()
    content = file.read_bytes()
    middle = len(content) // 2
    changed = {
        'empty': b'',
        'cut': content[:middle],
        'flipped': content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        'grown': content + b'\0',
    }
    file.write_bytes(changed[damage])
    check_kernel()
    assert len(stored) == 2
    assert file.read_bytes() == content


def test_a_file_under_the_name_of_another_is_not_used(folder):
    objects.store('one', b'1')
    objects.store('two', b'2')
    (folder / 'one').rename(folder / 'two')
    assert objects.load('one') is None and objects.load('two') is None


def test_what_cannot_be_written_leaves_nothing(folder):
    objects.store('kernel', b'1')
    (folder / 'other').mkdir()
    objects.store('other', b'2')
    assert {path.name for path in folder.iterdir()} == {'kernel', 'other'}
    assert objects.load('other') is None


@pytest.mark.parametrize('obstacle', ['a file', 'writable by others', 'no home'])
def test_without_a_folder_kernels_are_compiled(folder, stored, monkeypatch, obstacle):
    if obstacle == 'a file':
        folder.touch()
    elif obstacle == 'writable by others':
        folder.mkdir()
        folder.chmod(0o770)
    else:
        monkeypatch.setattr(torch.hub, '_hub_dir', '~/.cache/torch/hub')
        monkeypatch.chdir(folder.parent)
    check_kernel()
    check_kernel()
    assert len(stored) == 2
    assert not folder.is_dir() or not list(folder.iterdir())
    assert obstacle != 'no home' or not list(folder.parent.iterdir())


def test_the_oldest_files_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(objects, 'MOST_FILES', 3)
    for number in range(5):
        objects.store(str(number), bytes([number]))
        os.utime(folder / str(number), (number, number))
    assert sorted(path.name for path in folder.iterdir()) == ['2', '3', '4']
    assert objects.load('4') == b'\4' and objects.load('0') is None


def test_other_processes_use_it(tmp_path):
    code = (
        'import torch, swinv2_mm\n'
        'model = swinv2_mm.SwinTransformerV2(arch="tiny", window_size=8).eval()\n'
        'with torch.no_grad(): print(bool(model(torch.ones(1, 3, 64, 64))[-1].any()))\n'
    )
    environment, files = {**os.environ, 'TORCH_HOME': str(tmp_path)}, []
    for _ in range(2):
        command = [sys.executable, '-c', code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.stdout == 'True\n', done.stderr
        found = (tmp_path / 'hub/swinv2_mm_kernels').iterdir()
        files.append({path.name: path.stat().st_mtime_ns for path in found})
    assert len(files[0]) == 2 and files[0] == files[1]  # attention, and the norm
