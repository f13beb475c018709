"""What FSDP2 needs before there are processes; `tests/tools/test_sharded.py` runs them."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine import sharded
from swinv2_mm.engine.devices import is_sharded, join_processes
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.sharded import FullyShardedModel, parameters_on_meta


def test_the_giant_model_is_built_without_memory_for_its_weights():
    with parameters_on_meta():
        model = SwinTransformerV2('giant', norm_cfg=dict(type='BN'))
    parameters = dict(model.named_parameters())
    assert sum(value.numel() for value in parameters.values()) > 2.9e9
    assert all(value.is_meta for value in parameters.values())
    assert model.norm3.running_var.equal(torch.ones(model.out_channels[3]))


def test_parameters_stay_shared_and_frozen_on_meta():
    with parameters_on_meta():
        first, second = nn.Linear(2, 3), nn.Linear(2, 3)
        second.weight = first.weight
        second.bias = nn.Parameter(torch.zeros(3), requires_grad=False)
    assert second.weight is first.weight
    assert not second.bias.requires_grad and second.bias.is_meta
    assert not nn.Linear(2, 3).weight.is_meta


@pytest.mark.parametrize(
    ('kind', 'expected'),
    [
        ('swinv2_mm.FullyShardedModel', True),
        (FullyShardedModel, True),
        ('MMDistributedDataParallel', False),
    ],
)
def test_a_config_asks_for_it(kind, expected):
    assert is_sharded(dict(type=kind)) is expected
    assert not is_sharded(None) and not is_sharded(dict())


def test_it_gets_no_options_of_ddp(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    wrapper = dict(type='swinv2_mm.FullyShardedModel')
    cfg = Config(dict(launcher='pytorch', sync_bn='torch', model_wrapper_cfg=wrapper))
    join_processes(cfg, torch.device('cpu'))
    assert cfg.model_wrapper_cfg == wrapper


def test_other_runners_and_older_versions_of_torch_are_told(monkeypatch):
    with pytest.raises(SetupError, match=r'is for tools/train\.py'):
        FullyShardedModel(nn.Linear(2, 3))
    monkeypatch.setattr(sharded, '_IS_AVAILABLE', False)
    with pytest.raises(SetupError, match=r'needs torch 2\.8 or later'):
        FullyShardedModel(nn.Linear(2, 3))
