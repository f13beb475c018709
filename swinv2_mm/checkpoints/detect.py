"""Find the weights of the backbone in the content of a checkpoint file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import LAYOUTS, OTHER_MODELS, layout_by_name
from swinv2_mm.checkpoints.table import Layout
from swinv2_mm.checkpoints.tensors import CONTAINERS

_ROOT = 'patch_embed.proj'  # in every backbone: its key tells the prefix


@dataclass(frozen=True)
class Found:
    """Backbone weights within a file."""

    layout: Layout
    prefix: str  # of their names in the file, such as `'backbone.'`
    state: dict[str, Tensor]  # by names without the prefix
    outside: list[str]  # names in the file without the prefix


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file by name, out of the dict in which training scripts wrap them.

    Raises:
        CheckpointError: If there are none; the message begins with `where`.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{where} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()'
        )
    for key in CONTAINERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(x, Tensor) for x in inner.values()):
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
    """Find the SwinV2 backbone in a state dict, of any or of the given prefix and layout.

    Raises:
        CheckpointError: If there is no SwinV2 backbone, or more than one; the message begins with `where`.
    """
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    found: dict[str, Found] = {}
    for choice in LAYOUTS if layout is None else (layout_by_name(layout),):
        root = choice.their_name(_ROOT) + '.weight'
        for key in state:
            start = key.removesuffix(root)
            # The root is a whole name, or the end of one behind a dot.
            if start == key or start[-1:] not in ('', '.') or start in found:
                continue
            inside = {
                name[len(start) :]: value for name, value in state.items() if name.startswith(start)
            }
            if prefix in (None, start) and (layout or choice.matches(inside)):
                outside = [name for name in state if not name.startswith(start)]
                found[start] = Found(choice, start, inside, outside)
    if not found:
        raise CheckpointError(_nothing_found(state, where, prefix, layout))
    if len(found) > 1:
        raise CheckpointError(
            f'{where} holds {len(found)} SwinV2 backbones, with the prefixes '
            f'{", ".join(map(repr, sorted(found)))}: choose one with prefix=...'
        )
    return next(iter(found.values()))


def _nothing_found(
    state: Mapping[str, Tensor], where: str, prefix: str | None, layout: str | None
) -> str:
    sample = ', '.join(list(state)[:6])
    keys = f'its {len(state)} tensors are {sample}{", ..." if len(state) > 6 else ""}'
    if prefix or layout:
        wanted = f'of layout {layout or "any"} and prefix {prefix or "any"}'
        return f'{where} holds no SwinV2 backbone {wanted}; {keys}'
    for pattern, model in OTHER_MODELS:
        if any(re.search(pattern, key) for key in state):
            return f'{where} holds {model}, not a SwinV2; {keys}'
    names = ', '.join(choice.name for choice in LAYOUTS)
    return f'{where} holds no SwinV2 backbone in a known layout ({names}); {keys}'
