"""Shared random weights for all libraries."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cases import SIZES
from swinv2_mm.checkpoints.convert import convert_state
from swinv2_mm.checkpoints.detect import find_backbone
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.report import LoadReport

# Keys of a file that a backbone may lack: unused heads and derived values.
_FREE = ('head', 'norm', 'relative_', 'attn_mask', 'k_bias', 'layernorm', 'pooler', 'position_ids')


def write_weights(arch: str, path: Path) -> Path:
    """Write random weights in our layout, scaled like trained ones (without zero branches); return `path`."""
    from swinv2_mm import SwinTransformerV2

    generator = torch.Generator().manual_seed(0)
    model = SwinTransformerV2(vars(SIZES[arch]), norm_cfg=None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith('logit_scale'):
                parameter.copy_(math.log(10.0) + 0.1 * noise)
            elif 'cpb_mlp' in name:
                parameter.copy_(noise / (1 if parameter.shape[-1] == 2 else 16))
            elif 'norm' in name and name.endswith('weight'):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.02 * noise)
    state = model.state_dict()
    state.pop(WINDOWS_KEY, None)  # the training window is that of the case
    torch.save(state, path)
    return path


def load_weights(model: nn.Module, path: str, layout: str) -> None:
    """Load a file in our layout into a backbone whose weights have the names of `layout`.

    Raises:
        CheckpointError: A tensor does not exist in the layout.
        ValueError: The names of the weights do not match.
    """
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    if layout != 'native':
        found = find_backbone(state, path, layout='native')
        state = convert_state(found, layout, LoadReport(path, 'native', ''))
    result = model.load_state_dict(state, strict=False)
    missing = [
        key
        for key in result.missing_keys
        if not key.startswith(_FREE) and not key.rpartition('.')[2].startswith(_FREE)
    ]
    if missing or result.unexpected_keys:
        raise ValueError(
            f'the weights of layout {layout} do not fit {type(model).__name__}: lacking {missing[:3]}, '
            f'unexpected {result.unexpected_keys[:3]}'
        )
