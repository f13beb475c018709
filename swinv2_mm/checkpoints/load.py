"""Load pre-trained weights into a backbone: all of them, or an error that says why not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.model import PretrainedInit
from torch import Tensor

from swinv2_mm.checkpoints.detect import Found, find_backbone, unwrap
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import BACKBONES, DERIVED, WINDOWS_KEY
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.checkpoints.sources import LocalCheckpoint, fetch_checkpoint
from swinv2_mm.checkpoints.table import Recipe, Translation, matches_any, translate
from swinv2_mm.checkpoints.windows import (
    Configured,
    Pair,
    SourceWindows,
    as_pairs,
    choose_windows,
    read_windows,
    windows_of_config,
    windows_of_name,
)

_OUTPUT_NORM = r'norm\d+\.'
# What weights of other libraries lack, and what does no harm at its initial values.
_FRESH = (_OUTPUT_NORM, r'.*\.num_batches_tracked$', r'layers\.\d+\.blocks\.\d+\.offset_network\.')


@runtime_checkable
class Backbone(Protocol):
    """What a backbone needs for `load_pretrained`.

    Attributes:
        window_sizes: The windows of attention `(height, width)`, one per stage.
        pretrained_window_sizes: The windows of the weights in the config, in the same form, or `'auto'` for those in
            the file.
    """

    window_sizes: tuple[Pair, ...]
    pretrained_window_sizes: Configured

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors to load into, by name."""

    def retarget(self, windows: Sequence[Pair]) -> None:
        """Divide the coordinates of the position bias by `windows` from now on."""


def load_pretrained(
    backbone: Backbone,
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
        backbone: The backbone.
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
    local = fetch_checkpoint(checkpoint)
    content = read_checkpoint_file(local.path, 'cpu', mmap=True)
    where = str(checkpoint)
    found = find_backbone(unwrap(content, where), where, prefix, layout)
    windows = source_windows(found, local, content)
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
    if unbuilt := next((key for key, value in targets.items() if value.is_meta), None):
        raise ValueError(
            f'{unbuilt} of the backbone is on the meta device, which holds no values: backbone.to_empty(device=...) '
            'first'
        )
    report = LoadReport(where, found.layout.name, found.prefix, windows, backbone.window_sizes)
    recipes = _sort_out(found, targets, report)
    report.allow(allow)
    stages = 1 + max((int(key.split('.')[1]) for key in targets if key[:7] == 'layers.'), default=0)
    chosen = choose_windows(
        backbone.pretrained_window_sizes, backbone.window_sizes, windows, stages, where
    )
    report.position_windows = () if family == 'cr' else chosen
    if report.problems:
        theirs = translate(found.state, found.layout, to_ours=True).recipes
        # The wrong arch is the most common reason.
        raise CheckpointError(
            f'{where} does not fit the backbone: {"; ".join(report.problems)}. The file has {_depths(theirs)}; the '
            f'model has {_depths(targets)}; what is meant to be so can be allowed by name, '
            f'init_cfg=dict(allow=[...]).\n{report.table()}'
        )
    with torch.no_grad():
        for key, recipe in recipes.items():
            targets[key].copy_(recipe.make(found.state.__getitem__))
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
    for cfg in [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []:
        if cfg.get('type') in ('Pretrained', 'mmengine.Pretrained', PretrainedInit):
            # Weights are copied to the device of the model.
            left_out = ('type', 'map_location')
            pretrained.append({key: value for key, value in cfg.items() if key not in left_out})
        else:
            others.append(dict(cfg))
    return others, pretrained


def source_windows(found: Found, local: LocalCheckpoint, content: Any) -> SourceWindows | None:
    """Return the windows at which weights were trained; `None` if unknown.

    Args:
        found: The weights.
        local: Their file.
        content: The content of the file.
    """
    if found.layout.family == 'cr':
        return None  # its position bias is a function of tokens
    if windows := read_windows(found.state, found.layout):
        return windows
    meta = content.get('meta')
    if isinstance(meta, Mapping) and (stated := meta.get(WINDOWS_KEY)) is not None:
        return SourceWindows(as_pairs(stated), 'the metadata of the file')
    return windows_of_config(local.config or {}) or windows_of_name(local.name)


def _sort_out(found: Found, targets: Mapping[str, Tensor], report: LoadReport) -> dict[str, Recipe]:
    """Put every tensor of file and model on its list in the report; return how to make those that fit."""
    translation = translate_file(found, report, targets)
    fitting: dict[str, Recipe] = {}
    for key, recipe in translation.recipes.items():
        if key not in targets:
            if _is_not_built(key, targets):
                report.drop('stages and norms that the model does not have', key)
            else:
                report.unexpected[key] = 'the model has no such tensor'
            continue
        target, sources = targets[key], [found.state[name] for name in recipe.names]
        if odd := next(filter(None, (_not_weights(item, target) for item in sources)), None):
            report.unexpected[key] = odd
            continue
        if not all(item.isfinite().all() for item in sources):
            report.not_finite.append(key)
            continue
        try:
            shape = tuple(recipe.make(lambda name: found.state[name].to('meta')).shape)
        except (ValueError, RuntimeError) as error:
            report.unexpected[key] = str(error)
            continue
        if shape != tuple(target.shape):
            report.mismatched[key] = (shape, tuple(target.shape))
        else:
            fitting[key] = recipe
    for key in sorted(targets.keys() - translation.recipes.keys()):
        (report.fresh if matches_any(_FRESH, key) else report.missing).append(key)
    return fitting


def _not_weights(source: Tensor, target: Tensor) -> str | None:
    """Return why a tensor cannot be copied by value, if so: torch copies some of these without an error."""
    if source.layout != torch.strided or source.is_meta:
        return f'{"without values" if source.is_meta else source.layout}, not an array of numbers'
    kinds = [
        (item.is_floating_point(), item.is_complex(), item.is_quantized)
        for item in (source, target)
    ]
    return None if kinds[0] == kinds[1] else f'{source.dtype} for {target.dtype}'


def translate_file(found: Found, report: LoadReport, wanted: Collection[str] = ()) -> Translation:
    """Translate the names of a file into ours; add to `report` what is not part of the backbone.

    Args:
        found: The weights.
        report: The report.
        wanted: Names of the model; default: those that hold the same numbers as the file.
    """
    for key in found.outside:
        report.drop('outside the backbone', key)
    translation = translate(found.state, found.layout, to_ours=True, wanted=wanted)
    for key in translation.unknown:
        if key == WINDOWS_KEY:
            continue
        if matches_any([DERIVED], key):
            report.drop('derived tables', key)
        elif matches_any(found.layout.heads, key):
            report.drop('head', key)
        else:
            report.unexpected[key] = f'no tensor of the layout {found.layout.name}'
    for key, lacking in translation.incomplete.items():
        report.unexpected[key] = f'without {", ".join(lacking)}'
    return translation


def _is_not_built(key: str, targets: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is of a stage, a downsampling or an output norm that the model was built without."""
    if matches_any([_OUTPUT_NORM], key):
        return True
    parts = key.split('.')
    if parts[0] != 'layers':
        return False
    stages = {int(name.split('.')[1]) for name in targets if name.startswith('layers.')}
    stage = int(parts[1])
    return stage not in stages or (parts[2] == 'downsample' and stage == max(stages))


def _depths(names: Mapping[str, object]) -> str:
    depths: dict[int, int] = {}
    for name in names:
        parts = name.split('.')
        if parts[0] == 'layers' and parts[2] == 'blocks':
            depths[int(parts[1])] = max(depths.get(int(parts[1]), 0), int(parts[3]) + 1)
    return f'depths {[depths[stage] for stage in sorted(depths)]}'
