"""Find the weights of the backbone in the content of a checkpoint file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import LAYOUTS, OTHER_MODELS, layout_by_name
from swinv2_mm.checkpoints.table import Layout, matches_layout

_CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'module', 'state_dict_ema', 'model_ema')
_ROOT = 'patch_embed.proj'  # in every backbone: its key tells the prefix


@dataclass(frozen=True)
class Found:
    """Backbone weights within a file.

    Attributes:
        layout: Their layout.
        prefix: The prefix of their names, such as `'backbone.'`.
        state: The weights, by names without the prefix.
        outside: Names in the file without the prefix.
    """

    layout: Layout
    prefix: str
    state: dict[str, Tensor]
    outside: list[str]


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file by name, out of the dict in which training scripts wrap them.

    Raises:
        CheckpointError: If there are none; the message begins with `where`.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{where} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()'
        )
    for key in _CONTAINERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(
            isinstance(value, Tensor) for value in inner.values()
        ):
            content = inner
            break
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ', '.join(map(str, list(content)[:8])) or 'none at all'
        raise CheckpointError(f'{where} holds no weights; its keys are: {keys}')
    return state


def find_backbone(
    state: Mapping[str, Tensor], where: str, prefix: str | None = None, layout: str | None = None
) -> Found:
    """Find the SwinV2 backbone in a state dict, and its layout.

    Args:
        state: Tensors by name.
        where: Name of the file, for messages.
        prefix: The prefix of the backbone's names; default: any.
        layout: Name of the layout; default: any.

    Raises:
        CheckpointError: If there is no SwinV2 backbone, or more than one.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    choices = LAYOUTS if layout is None else (layout_by_name(layout),)
    found: dict[str, Found] = {}
    for choice in choices:
        for candidate in _prefixes(state, choice):
            if candidate in found or (prefix is not None and candidate != prefix):
                continue
            inside = {
                key[len(candidate) :]: value
                for key, value in state.items()
                if key.startswith(candidate)
            }
            if layout is not None or matches_layout(choice, inside):
                outside = [key for key in state if not key.startswith(candidate)]
                found[candidate] = Found(choice, candidate, inside, outside)
    if not found:
        raise CheckpointError(_nothing_found(state, where, prefix, layout))
    if len(found) > 1:
        raise CheckpointError(
            f'{where} holds {len(found)} SwinV2 backbones, with the prefixes '
            f'{", ".join(map(repr, sorted(found)))}: choose one with prefix=...'
        )
    return next(iter(found.values()))


def _prefixes(state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    root = layout.their_name(_ROOT) + '.weight'
    return [key[: -len(root)] for key in state if key == root or key.endswith(f'.{root}')]


def _nothing_found(
    state: Mapping[str, Tensor], where: str, prefix: str | None, layout: str | None
) -> str:
    sample = ', '.join(list(state)[:6])
    keys = f'its {len(state)} tensors are {sample}{", ..." if len(state) > 6 else ""}'
    if prefix or layout:
        wanted = ' and '.join(
            f'{what} {value!r}' for what, value in (('layout', layout), ('prefix', prefix)) if value
        )
        return f'{where} holds no SwinV2 backbone with {wanted}; {keys}'
    for pattern, model in OTHER_MODELS:
        if any(re.search(pattern, key) for key in state):
            return f'{where} holds {model}, not a SwinV2; {keys}'
    names = ', '.join(choice.name for choice in LAYOUTS)
    return f'{where} holds no SwinV2 backbone in a known layout ({names}); {keys}'
