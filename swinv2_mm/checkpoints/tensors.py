"""Check the tensors in the content of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError, trusting

CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'module', 'state_dict_ema', 'model_ema')
"""Keys under which training scripts keep the weights."""
_SHOWN = 6
_SMALL = 2**30  # bytes


def named_tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors in nested containers, each with its path such as `state_dict.head.weight`."""
    waiting, seen = [('', content)], set()  # a container may contain itself
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, Tensor):
            yield name[1:], item
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
            waiting.extend((f'{name}.{key}', value) for key, value in pairs)


def require_stored(content: Any, where: str) -> None:
    """Raise CheckpointError if a tensor has far more elements than are stored, which would fill the memory."""
    for name, tensor in named_tensors(content):
        has_values = tensor.layout == torch.strided and not tensor.is_meta
        stored = tensor.untyped_storage().nbytes() if has_values else 0
        if tensor.numel() * tensor.element_size() > max(stored, _SMALL):
            raise CheckpointError(
                f'{where}: {name} claims {tensor.numel()} elements, of which {stored} bytes are stored'
            )


def require_finite(content: Any, where: str) -> None:
    """Check that weights and states of the optimizer are finite; masks and single numbers may be infinite.

    Raises:
        CheckpointError: If a tensor has NaN or infinite values. Inside `trust_checkpoints`, this is a warning.
    """
    keys = (*CONTAINERS, 'ema_state_dict', 'optimizer')  # not gradients, which may overflow
    if isinstance(content, Mapping):
        content = {key: content[key] for key in keys if key in content} or content
    wrong = [name for name, tensor in named_tensors(content) if not _is_sound(name, tensor)]
    if not wrong:
        return
    names = ', '.join(sorted(wrong)[:_SHOWN]) + (', ...' if len(wrong) > _SHOWN else '')
    message = f'{where}: {len(wrong)} tensors have NaN or infinite values, or none at all: {names}'
    if not trusting.get():
        raise CheckpointError(f'{message}. To load it as it is: --trust-checkpoint.')
    print_log(message, logger='current', level=logging.WARNING)


def _is_sound(name: str, tensor: Tensor) -> bool:
    if tensor.is_meta:
        return False
    if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # not implemented for the types of 8 bits
        tensor = tensor.float()
    if 'mask' in name or not tensor.dim():
        return not tensor.isnan().any()
    return bool(tensor.isfinite().all())
