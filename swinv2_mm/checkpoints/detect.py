"""Find the weights of the backbone in the content of a checkpoint file, and check its tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError, trusting
from swinv2_mm.checkpoints.layouts import LAYOUTS, OTHER_MODELS, layout_by_name
from swinv2_mm.checkpoints.table import Layout

EMA_CONTAINERS = ('state_dict_ema', 'model_ema', 'ema', 'teacher')
"""Keys under which training scripts keep averaged weights beside the raw ones."""
CONTAINERS = (*EMA_CONTAINERS, 'state_dict', 'model', 'model_state_dict', 'module', 'student')
"""Keys under which training scripts keep the weights; the first one counts."""
COMPILED = '_orig_mod.'
"""What `torch.compile` adds to names."""
_EMA = re.compile(r'(^|[._])(ema|teacher)[._]')  # in prefixes
_SHOWN = 6
_SMALL = 2**30  # bytes
_ROOT = 'patch_embed.proj'  # in every backbone: its key tells the prefix


@dataclass(frozen=True)
class Found:
    """Backbone weights within a file."""

    layout: Layout
    prefix: str  # of their names in the file, such as `'backbone.'`
    state: dict[str, Tensor]  # by names without the prefix
    outside: list[str]  # names in the file without the prefix
    choice: str = ''  # which weights of several these are, in words


def unwrap(content: Any, where: str, container: str | None = None) -> dict[str, Tensor]:
    """Return the tensors in the content of a file by name, out of the dict in which training scripts wrap them.

    Of several dicts, `container` is the key of the wanted one; default: the first of `CONTAINERS`.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{where} holds a {type(content).__name__}, not a dict of weights: save model.state_dict()'
        )
    held = containers_in(content)
    if held:
        content = held[container or next(iter(held))]
    state = {
        str(key).replace(COMPILED, ''): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    if not state:
        keys = ', '.join(map(str, list(content)[:8])) or 'none at all'
        raise CheckpointError(f'{where} holds no weights; its keys are: {keys}')
    return state


def containers_in(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the dicts of weights in the content of a file, by the keys of `CONTAINERS`.

    Dicts with less than half as many tensors as the largest one are not models, and left out.
    """
    held, counts = {}, {}
    for key in CONTAINERS:
        inner = content.get(key)
        for wrapper in ('module', 'state_dict'):  # of DDP or of the averaging, within `ema`
            if isinstance(inner, Mapping) and isinstance(inner.get(wrapper), Mapping):
                inner = inner[wrapper]
        if isinstance(inner, Mapping):
            held[key] = inner
            counts[key] = sum(isinstance(value, Tensor) for value in inner.values())
    least = max(counts.values(), default=0) / 2
    return {key: inner for key, inner in held.items() if counts[key] and counts[key] >= least}


def prefer_averaged(content: dict[str, Any]) -> str:
    """Put the weights of a whole model under `state_dict`, averaged ones first; say which, if there is a choice."""
    held = containers_in(content)
    chosen = next(iter(held), 'state_dict')
    if chosen == 'state_dict':
        return ''
    others = ', '.join(key for key in held if key != chosen)
    content['state_dict'] = held[chosen]
    kind = 'averaged weights (EMA)' if chosen in EMA_CONTAINERS else 'weights'
    return f'the {kind} under {chosen!r} are loaded, not {others}' if others else ''


def find_weights(
    content: Any, where: str, prefix: str | None = None, layout: str | None = None
) -> Found:
    """Find the backbone in the content of a file; see `unwrap` and `find_backbone`.

    Averaged weights go before raw ones. `prefix` may also begin with the key of a container, e.g. `'state_dict.'`.
    """
    held = containers_in(content) if isinstance(content, Mapping) else {}
    first, _, rest = (prefix or '').partition('.')
    if first not in held:
        first, rest = '', prefix or ''
    found = find_backbone(unwrap(content, where, first or None), where, rest or None, layout)
    averaged = next(iter(held), '')
    if not first and len(held) > 1 and averaged in EMA_CONTAINERS:
        others = ', '.join(f'prefix={key!r}' for key in held if key != averaged)
        choice = f'EMA, under {averaged!r}; the others: {others}'
        found = replace(found, choice=choice)
    return found


def find_backbone(
    state: Mapping[str, Tensor], where: str, prefix: str | None = None, layout: str | None = None
) -> Found:
    """Find the SwinV2 backbone in a state dict, of any or of the given prefix and layout.

    Of several ones, the only one with `ema` or `teacher` in its prefix is taken.
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
            if start.startswith(prefix or '') and (layout or choice.matches(inside)):
                outside = [name for name in state if not name.startswith(start)]
                found[start] = Found(choice, start, inside, outside)
    if not found:
        raise CheckpointError(_nothing_found(state, where, prefix, layout))
    if len(found) == 1 or prefix in found:
        return found.get(prefix or '', next(iter(found.values())))
    averaged = [start for start in found if _EMA.search(start)]
    if len(averaged) != 1:
        raise CheckpointError(
            f'{where} holds {len(found)} SwinV2 backbones, with the prefixes '
            f'{", ".join(map(repr, sorted(found)))}: choose one with prefix=...'
        )
    others = ', '.join(f'prefix={start!r}' for start in found if start != averaged[0])
    return replace(found[averaged[0]], choice=f'EMA; the others: {others}')


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


def require_names(content: Any, where: str) -> None:
    """Raise CheckpointError if the weights of a whole model are not tensors by name."""
    if not isinstance(content, Mapping):
        return
    for container in ('state_dict', 'ema_state_dict'):
        weights = content.get(container, {})
        if not isinstance(weights, Mapping):
            raise CheckpointError(
                f'{where}: its {container} is a {type(weights).__name__}, not a dict'
            )
        for name, value in weights.items():
            if not isinstance(name, str):
                raise CheckpointError(f'{where}: {str(name)[:80]} in its {container} is not a name')
            if not isinstance(value, Tensor) and not name.endswith('_extra_state'):
                raise CheckpointError(
                    f'{where}: {name[:80]} in its {container} is a {type(value).__name__}, not a tensor'
                )


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

    Inside `trust_checkpoints`, others are a warning.
    """
    keys = (*CONTAINERS, 'ema_state_dict', 'optimizer')  # not gradients, which may overflow
    if isinstance(content, Mapping):
        content = {key: content[key] for key in keys if key in content} or content
    wrong = [name for name, tensor in named_tensors(content) if not is_sound(name, tensor)]
    if not wrong:
        return
    names = ', '.join(sorted(wrong)[:_SHOWN]) + (', ...' if len(wrong) > _SHOWN else '')
    message = f'{where}: {len(wrong)} tensors have NaN or infinite values, or none at all: {names}'
    if not trusting.get():
        raise CheckpointError(f'{message}. To load it as it is: --trust-checkpoint.')
    print_log(message, logger='current', level=logging.WARNING)


def is_sound(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor has finite values only; masks and single numbers may be infinite."""
    if tensor.is_meta:
        return False
    if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # not implemented for the types of 8 bits
        tensor = tensor.float()
    if 'mask' in name or not tensor.dim():
        return not tensor.isnan().any()
    return bool(tensor.isfinite().all())
