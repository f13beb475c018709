"""The device that was asked for is there, or the run stops."""

import pytest
import torch
from torch import nn

from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.cpu_amp import CpuAmpOptimWrapper
from swinv2_mm.engine.devices import join_processes, process_rank, require_device
from swinv2_mm.engine.errors import SetupError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')


@without_gpu
def test_asking_for_a_gpu_where_there_is_none(monkeypatch):
    with pytest.raises(SetupError, match=r'--device cuda, but torch .* sees no GPU .*--device cpu'):
        require_device('cuda', 'none')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    with pytest.raises(SetupError, match=r'CUDA_VISIBLE_DEVICES=3 asks for a GPU.*--device cpu'):
        require_device('auto', 'none')


@without_gpu
def test_a_cpu_will_do_unless_a_gpu_is_asked_for(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert require_device('auto', 'none') is False
    assert require_device('cpu', 'none') is False


@without_gpu
def test_cluster_launchers_need_gpus():
    with pytest.raises(SetupError, match='--launcher slurm needs a GPU'):
        require_device('auto', 'slurm')


def test_the_pytorch_launcher_needs_torchrun(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SetupError, match=r'tools/dist_train\.sh'):
        require_device('auto', 'pytorch')


def test_the_rank_is_read_from_any_launcher(monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '3')
    assert process_rank('slurm') == 3
    assert process_rank('none') == 0
    monkeypatch.setenv('RANK', '1')
    assert process_rank('pytorch') == 1


def test_sync_bn_stays_with_gpus(detection_config):
    cfg = load_config(detection_config)
    assert cfg.sync_bn == 'torch'
    cfg.launcher = 'none'
    join_processes(cfg, on_gpu=True)
    assert cfg.sync_bn == 'torch'
    join_processes(cfg, on_gpu=False)
    assert 'sync_bn' not in cfg


def test_amp_on_a_cpu_computes_in_bfloat16():
    model = nn.Linear(3, 2)
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(1, 3))
    assert out.dtype is torch.bfloat16
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype is torch.float32
    assert not torch.equal(model.weight, before)
