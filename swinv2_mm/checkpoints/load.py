"""Load pre-trained weights into a backbone: all of them, or an error that says why not."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.model import PretrainedInit
from torch import Tensor

from swinv2_mm.checkpoints.detect import Found, find_weights, is_sound
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import BACKBONES, DERIVED, HEADS, WINDOWS_KEY
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.sources import fetch_checkpoint
from swinv2_mm.checkpoints.table import Change, Recipe, translate
from swinv2_mm.checkpoints.windows import (
    SourceWindows,
    as_pairs,
    choose_windows,
    names_of_arch,
    read_windows,
    refuse_other_masks,
    windows_of_config,
    windows_of_name,
)

# What weights of other libraries lack, and what does no harm at its initial values.
_FIRST = 'patch_embed.proj.weight'
_FRESH = r'norm\d+\.|.*\.num_batches_tracked$|layers\.\d+\.blocks\.\d+\.offset_network\.'


def load_pretrained(
    backbone: Any,
    checkpoint: str | Path,
    *,
    prefix: str | None = None,
    layout: str | None = None,
    allow: Sequence[str] = (),
    logger: MMLogger | str | None = 'current',
) -> LoadReport:
    """Load weights of any known layout, and fit the position bias to the window they were trained at.

    After an error the backbone is unchanged.

    Args:
        backbone: A backbone with the attributes and methods of `SwinTransformerV2` that are about windows.
        checkpoint: A file, or an address of `swinv2_mm.checkpoints.sources`.
        prefix: The prefix of the backbone's names; default: any.
        layout: Name of the layout; default: any.
        allow: Regular expressions for the beginning of names: these tensors may be missing, unexpected, of another
            shape or not finite, and keep their values.
        logger: Where to log the report, see mmengine's `print_log`.

    Raises:
        CheckpointUnavailableError: If the file does not exist or cannot be downloaded.
        CheckpointError: If the file does not fit the backbone, or is not a checkpoint.
        ValueError: If the backbone is on the meta device.
    """
    where = str(checkpoint)
    found, windows = read_backbone(where, prefix, layout)
    family = getattr(backbone, 'checkpoint_family', 'v2')
    if found.layout.family != family:
        right = BACKBONES[found.layout.family]
        raise CheckpointError(
            f'{where} is in the layout {found.layout.name}, for the backbone {right}, and this is a '
            f"{type(backbone).__name__}: build type='swinv2_mm.{right}' for it"
        )
    state = backbone.state_dict()
    targets = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    targets.pop(WINDOWS_KEY, None)
    if any(value.is_meta for value in targets.values()):
        raise ValueError('the backbone is on the meta device: backbone.to_empty(device=...) first')
    report = LoadReport(where, found.layout.name, found.prefix, windows, backbone.window_sizes)
    report.choice = found.choice
    recipes = _sort_out(found, targets, report)
    report.allow(allow)
    stages = _num_stages(targets)
    if windows is None and backbone.pretrained_window_sizes == 'auto':
        refuse_other_masks(found.state, backbone.window_sizes, where)
    chosen = choose_windows(
        backbone.pretrained_window_sizes, backbone.window_sizes, windows, stages, where
    )
    report.position_windows = () if family == 'cr' else chosen
    if report.problems:
        theirs, _ = translate(found.state, found.layout, to_ours=True)
        # The wrong arch is the most common reason.
        raise CheckpointError(
            f'{where} does not fit the backbone: {"; ".join(report.problems)}. The file has {_depths(theirs)}; the '
            f'model has {_depths(targets)}; what is meant to be so can be allowed by name, '
            f'init_cfg=dict(allow=[...]).\n{report.table()}'
        )
    with torch.no_grad():
        for key, recipe in recipes.items():
            targets[key].copy_(recipe.make(found.state))
            report.loaded.append(key)
    backbone.retarget(chosen)
    level = logging.WARNING if report.allowed else logging.INFO
    print_log(report.table(), logger=logger, level=level)
    return report


def split_pretrained(
    init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split an `init_cfg` into the configs for mmengine, and arguments of `load_pretrained` for type `Pretrained`."""
    others, pretrained = [], []
    for given in [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []:
        cfg = dict(given)
        if cfg.get('type') in ('Pretrained', 'mmengine.Pretrained', PretrainedInit):
            left_out = ('type', 'map_location')  # weights are copied to the device of the model
            pretrained.append({key: cfg[key] for key in cfg if key not in left_out})
        else:
            others.append(cfg)
    return others, pretrained


def read_backbone(
    where: str, prefix: str | None = None, layout: str | None = None
) -> tuple[Found, SourceWindows | None]:
    """Return the weights at an address, and the windows they were trained at; `None` if unknown."""
    local = fetch_checkpoint(where)
    content = local.read(mmap=True)
    found = find_weights(content, where, prefix, layout)
    if found.layout.family == 'cr':
        return found, None  # its position bias is a function of tokens
    if windows := read_windows(found.state, found.layout):
        return found, windows
    meta = content.get('meta')
    if isinstance(meta, Mapping) and (stated := meta.get(WINDOWS_KEY)) is not None:
        return found, SourceWindows(as_pairs(stated), 'the metadata of the file')
    names = (local.name, *names_of_arch(content))
    candidates = (windows_of_config(local.config or {}), *map(windows_of_name, names))
    return found, next(filter(None, candidates), None)


def _sort_out(found: Found, targets: Mapping[str, Tensor], report: LoadReport) -> dict[str, Recipe]:
    """Put every tensor of file and model on its list in the report; return how to make those that fit."""
    recipes = translate_file(found, report, targets)
    fitting: dict[str, Recipe] = {}
    for key, recipe in recipes.items():
        sources = {name: found.state[name] for name in recipe.names}
        if key not in targets:
            if _is_not_built(key, targets):
                report.drop('stages and norms that the model does not have', key)
            else:
                report.unexpected[key] = 'the model has no such tensor'
            continue
        try:
            for source in sources.values():
                _check_numbers(source, targets[key])
            made = recipe.make({name: source.to('meta') for name, source in sources.items()})
        except ValueError as error:
            report.unexpected[key] = str(error)
            continue
        theirs, ours = tuple(made.shape), tuple(targets[key].shape)
        of_rgb = key == _FIRST and theirs[1:2] == (3,) and theirs != ours
        if of_rgb and ours == (theirs[0], ours[1], *theirs[2:]):
            recipe = replace(recipe, change=_for_bands(ours[1], recipe.change))
            report.adapted[key] = f'from 3 to {ours[1]} channels'
            theirs = ours
        if not all(is_sound(name, source) for name, source in sources.items()):
            report.not_finite[key] = ''
        elif theirs != ours:
            report.mismatched[key] = f'{theirs} instead of {ours}'
        else:
            fitting[key] = recipe
    for key in sorted(targets.keys() - recipes.keys()):
        if re.match(_FRESH, key):
            report.fresh.append(key)
        else:
            report.missing[key] = ''
    return fitting


def _for_bands(bands: int, change: Change | None) -> Change:
    """Return a change that turns a convolution of RGB images into one of `bands` channels.

    As in timm, one channel gets the sum of the weights; more channels repeat them, times 3 / `bands`.
    """

    from timm.models import adapt_input_conv

    return lambda weight: adapt_input_conv(bands, change(weight) if change else weight)


def _check_numbers(source: Tensor, target: Tensor) -> None:
    """Raise ValueError if a tensor cannot be copied by value: torch copies some of these without an error."""
    if source.is_meta or source.layout != torch.strided:
        kind = 'without values' if source.is_meta else source.layout
        raise ValueError(f'{kind}, not an array of numbers')
    if source.is_floating_point() != target.is_floating_point():
        raise ValueError(f'{source.dtype} for {target.dtype}')


def translate_file(
    found: Found, report: LoadReport, wanted: Collection[str] = ()
) -> dict[str, Recipe]:
    """Translate the names of a file into ours; add to `report` what is not part of the backbone, see `translate`."""
    for key in found.outside:
        report.drop('outside the backbone', key)
    recipes, unknown = translate(found.state, found.layout, to_ours=True, wanted=wanted)
    for key, lacking in unknown.items():
        if lacking:
            report.unexpected[key] = f'without {", ".join(lacking)}'
        elif re.match(DERIVED, key):
            report.drop('derived tables', key)
        elif re.match(HEADS, key):
            report.drop('head', key)
        elif key != WINDOWS_KEY:
            report.unexpected[key] = f'no tensor of the layout {found.layout.name}'
    return recipes


def _is_not_built(key: str, targets: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is of a stage, a downsampling or an output norm that the model was built without."""
    if not key.startswith('layers.'):
        return key.startswith('norm')
    _, stage, part, _ = key.split('.', 3)
    stages = _num_stages(targets)
    return int(stage) >= stages or (part == 'downsample' and int(stage) == stages - 1)


def _num_stages(names: Iterable[str]) -> int:
    return 1 + max((int(name.split('.')[1]) for name in names if name[:7] == 'layers.'), default=0)


def _depths(names: Iterable[str]) -> str:
    blocks = {tuple(name.split('.')[1:4:2]) for name in names if '.blocks.' in name}
    depths = Counter(int(stage) for stage, _ in blocks)
    return f'depths {[depths[stage] for stage in sorted(depths)]}'
