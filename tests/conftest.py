"""Shared by all tests."""

import os

# Before torch is loaded, and for the processes that tests start: threads that wait by spinning are several times
# slower as soon as they share their cores with anything else.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def randomize():
    """Give every parameter of a model random values, so that nothing hides behind a zero or a one."""

    def apply(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if 'logit_scale' in name:
                    parameter.copy_(2.0 + noise)
                elif 'norm' in name:
                    parameter.copy_(0.3 * noise + (1.0 if name.endswith('weight') else 0.0))
                else:
                    fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
                    parameter.copy_(noise / fan_in**0.5)
        return model

    return apply
