"""Shared by all tests."""

import os
from pathlib import Path

# Before torch is loaded, and for the processes that tests start: threads that wait by spinning are several times
# slower as soon as they share their cores with anything else.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import pytest
import torch
from torch import nn

# They build every config, compare with other libraries, compile kernels, or start many processes.
_SLOW = (
    *('checkpoints/test_layout_parity.py', 'checkpoints/test_safe_loading.py'),
    'apis/',
    *('checkpoints/test_tools.py', 'test_config', 'test_classification_configs.py'),
    *('test_import.py', 'models/backbones/test_compile_and_export.py'),
    *('models/backbones/test_on_gpus.py', 'models/backbones/test_swin_transformer_v2_cr.py'),
    *('ops/test_kernels_in_the_interpreter.py', 'ops/window_attention/test_llvm.py'),
    *('ops/window_attention/test_triton', 'ops/mmcv_ext/test_mmcv_ext_install.py'),
    *('ops/mmcv_ext/test_mmcv_ext_models.py', 'tools/'),
)


def pytest_collection_modifyitems(items):
    """Mark what `make test-fast` leaves out."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(_SLOW):
            item.add_marker('slow')


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
