"""The device that was asked for is used, or the run stops."""

import os
import subprocess
import sys

import mmengine.device.utils
import pytest
import torch
from mmengine.config import Config
from torch import nn

from swinv2_mm.engine import devices
from swinv2_mm.engine.devices import available_devices, join_processes, process_rank, use_device
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.runner import AutocastOptimWrapper

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')


@pytest.fixture(autouse=True)
def _device_of_mmengine(monkeypatch):
    """Restore the device that `use_device` sets."""
    monkeypatch.setattr(mmengine.device.utils, 'DEVICE', mmengine.device.utils.DEVICE)


@without_gpu
def test_asking_for_a_gpu_where_there_is_none(monkeypatch):
    with pytest.raises(SetupError, match=r'--device cuda asks for a GPU, but .*available: cpu'):
        use_device('cuda', 'none')
    with pytest.raises(SetupError, match=r'--device cuda:1 asks for a GPU'):
        use_device('cuda:1', 'none')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    with pytest.raises(SetupError, match=r'CUDA_VISIBLE_DEVICES=3 asks for a GPU.*--device cpu'):
        use_device('auto', 'none')


def test_one_thread_where_openmp_may_start_fewer():
    code = (
        'import torch\n'
        'from swinv2_mm.engine.devices import use_device\n'
        'use_device("cpu", "none")\n'
        'print(torch.get_num_threads())\n'
    )
    environment = {**os.environ, 'OMP_NUM_THREADS': '2', 'OMP_THREAD_LIMIT': '1'}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == '1'
    assert 'OMP_THREAD_LIMIT' in done.stdout + done.stderr


@pytest.mark.parametrize('name', ['meta', 'mps:3', 'xpu:7', 'cpu:5', 'mtia'])
def test_devices_that_are_not_there(name):
    with pytest.raises(SetupError, match=f'--device {name} is not available; available: cpu'):
        use_device(name, 'none')


@pytest.mark.parametrize('name', ['gpu', 'cuda:x', ''])
def test_names_that_are_not_devices(name):
    with pytest.raises(
        SetupError, match=f'--device {name} is not a device of torch; available: cpu'
    ):
        use_device(name, 'none')


@without_gpu
def test_a_cpu_is_used_unless_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert available_devices()[0] == 'cpu'
    assert use_device('cpu', 'none') == torch.device('cpu')
    assert mmengine.device.get_device() == 'cpu'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_used_by_its_index():
    last = torch.cuda.device_count() - 1
    assert f'cuda:{last}' in available_devices()
    assert use_device(f'cuda:{last}', 'none').index == last == torch.cuda.current_device()
    assert mmengine.device.get_device() == 'cuda'
    assert use_device('auto', 'none') == torch.device('cuda')


def on_a_mac(device):
    """What `use_device` and mmengine make of a device where torch finds MPS."""
    program = (
        'import torch\n'
        'torch.backends.mps.is_available = lambda: True\n'
        'torch.mps.device_count = lambda: 1\n'
        'from mmengine.device import get_device\n'
        'from swinv2_mm.engine.devices import available_devices, use_device\n'
        'before = get_device()\n'
        f"print(before, use_device('{device}', 'none'), get_device(), *available_devices())"
    )
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@without_gpu
@pytest.mark.parametrize('device', ['cpu', 'mps', 'auto'])
def test_a_mac_runs_on_the_device_asked_for(device):
    """`mps` itself cannot be run here: what is tested is what mmengine's `get_device` returns to the Runner."""
    used = 'mps' if device == 'auto' else device
    assert on_a_mac(device) == ['mps', used, used, 'cpu', 'mps']


@without_gpu
def test_cluster_launchers_need_gpus():
    with pytest.raises(SetupError, match='--launcher slurm needs a GPU'):
        use_device('auto', 'slurm')


def test_the_pytorch_launcher_needs_torchrun(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SetupError, match=r'tools/dist_train\.sh'):
        use_device('auto', 'pytorch')


def test_the_rank_is_read_from_any_launcher(monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '3')
    assert process_rank('slurm') == 3
    assert process_rank('none') == 0
    monkeypatch.setenv('RANK', '1')
    assert process_rank('pytorch') == 1


def test_single_processes_and_gpus_are_left_to_mmengine():
    cfg = Config(dict(sync_bn='torch', launcher='none'))
    join_processes(cfg, torch.device('cpu'))
    cfg.launcher = 'pytorch'
    join_processes(cfg, torch.device('cuda'))
    assert dict(cfg) == dict(sync_bn='torch', launcher='pytorch')


def test_amp_on_a_cpu_computes_in_bfloat16(monkeypatch):
    monkeypatch.setattr(mmengine.device.utils, 'DEVICE', 'cpu')
    model = nn.Linear(3, 2)
    wrapper = AutocastOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(1, 3))
    assert out.dtype is torch.bfloat16
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype is torch.float32
    assert not torch.equal(model.weight, before)


def test_precisions(monkeypatch):
    capabilities = iter(['AVX2', 'AVX512'])
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: next(capabilities))
    warned = []
    monkeypatch.setattr(devices, 'warn', warned.append)
    cpu, linear = torch.device('cpu'), torch.nn.Linear(4, 4)
    for _ in range(2):
        with devices.autocast('bf16', cpu):
            assert linear(torch.ones(4)).dtype == torch.bfloat16
    assert len(warned) == 1 and 'no bf16' in warned[0]
    with devices.autocast('fp32', cpu):
        assert linear(torch.ones(4)).dtype == torch.float32
    with pytest.raises(SetupError, match='fp16 is for GPUs'):
        devices.autocast('fp16', cpu)
