"""The same random weights for every library."""

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

# What a backbone may lack in a file of ours: heads it does not use, and what it derives by itself.
_FREE = ('head', 'norm', 'relative_', 'attn_mask', 'k_bias', 'layernorm', 'pooler', 'position_ids')


def write_weights(arch: str, path: Path) -> Path:
    """Write weights in our layout, of the scale of trained ones (no residual branch is zero); returns `path`."""
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
    state.pop(WINDOWS_KEY, None)  # the position bias has the window of the case as its unit
    torch.save(state, path)
    return path


def load_weights(model: nn.Module, path: str, layout: str) -> None:
    """Load a file in our layout into a backbone of any library, which names its weights by `layout`.

    Raises:
        CheckpointError: The layout has no place for one of the tensors.
        ValueError: The model lacks weights or has other names for them.
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
