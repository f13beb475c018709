"""Loading pre-trained weights into a backbone: all of them, or an error that says why not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.model import PretrainedInit
from torch import Tensor

from swinv2_mm.checkpoints.detect import Found, find_backbone, unwrap
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import BACKBONES, DERIVED, WINDOWS_KEY
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.retarget import choose_windows
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.checkpoints.sources import LocalCheckpoint, fetch_checkpoint
from swinv2_mm.checkpoints.table import Recipe, Translation, matches_any, translate
from swinv2_mm.checkpoints.windows import (
    Pair,
    SourceWindows,
    as_pairs,
    read_windows,
    windows_of_config,
    windows_of_name,
)

_OUTPUT_NORM = r'norm\d+\.'
# What weights from elsewhere lack, and what does no harm at its initial values.
_FRESH = (_OUTPUT_NORM, r'.*\.num_batches_tracked$', r'layers\.\d+\.blocks\.\d+\.offset_network\.')


@runtime_checkable
class Backbone(Protocol):
    """What a backbone has to offer to be loaded from any layout.

    Attributes:
        window_sizes: The windows of attention `(height, width)`, one per stage.
        pretrained_window_sizes: What the config says about the windows of the weights, in the same form, or
            `'auto'` for what the file says.
    """

    window_sizes: tuple[Pair, ...]
    pretrained_window_sizes: tuple[Pair, ...] | Literal['auto']

    def state_dict(self) -> dict[str, Any]:
        """Returns the tensors that a load fills, by name."""

    def retarget(self, windows: Sequence[Pair]) -> None:
        """Divides the coordinates of the position bias by `windows` from now on."""


def load_pretrained(
    backbone: Backbone,
    checkpoint: str | Path,
    *,
    prefix: str | None = None,
    layout: str | None = None,
    allow: Sequence[str] = (),
    logger: MMLogger | str | None = 'current',
) -> LoadReport:
    """Loads weights of any known layout, and fits the position bias to the window they were trained at.

    The backbone is left as it was if anything is wrong.

    Args:
        backbone: What to load into.
        checkpoint: A file, or an address as in `swinv2_mm.checkpoints.sources`.
        prefix: What the names of the backbone begin with; default: found out.
        layout: Name of the layout; default: found out.
        allow: Names, as regular expressions, of tensors that may be missing, unexpected, of another shape or not
            finite: they are left alone.
        logger: Where the report goes, as for mmengine's `print_log`.

    Returns:
        The report.

    Raises:
        CheckpointUnavailableError: There is no such file, or it cannot be downloaded.
        CheckpointError: The file does not fit the backbone, or is no checkpoint.
        ValueError: The backbone has no values to load into: it is on the meta device.
    """
    local = fetch_checkpoint(checkpoint)
    content = read_checkpoint_file(local.path, 'cpu', mmap=True)
    where = str(checkpoint)
    found = find_backbone(unwrap(content, where), where, prefix, layout)
    return load_found(
        backbone, found, where, source_windows(found, local, content), allow=allow, logger=logger
    )


def split_pretrained(
    init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divides an mmengine `init_cfg` into what mmengine does and what `load_pretrained` does.

    Returns:
        The configs of other initialisers, and the arguments of `load_pretrained` for each of type `Pretrained`.
    """
    given = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg or [])
    # mmengine's own loads what fits and leaves the rest.
    ours = ('Pretrained', 'mmengine.Pretrained', PretrainedInit)
    is_pretrained = [cfg.get('type') in ours for cfg in given]
    others = [dict(cfg) for cfg, taken in zip(given, is_pretrained) if not taken]
    # Weights are copied to where the model is, whatever the map location.
    left_out = ('type', 'map_location')
    options = [
        {key: value for key, value in cfg.items() if key not in left_out}
        for cfg, taken in zip(given, is_pretrained)
        if taken
    ]
    return others, options


def source_windows(
    found: Found, local: LocalCheckpoint | None = None, content: Any = None
) -> SourceWindows | None:
    """Finds out at which windows weights were trained: from the weights, else from what came with them.

    Args:
        found: The weights.
        local: The file they are from.
        content: All that the file holds.

    Returns:
        The windows; None if nothing tells.
    """
    if found.layout.family == 'cr':
        return None  # its position bias counts in tokens
    windows = read_windows(found.state, found.layout)
    if (
        windows is None
        and isinstance(content, Mapping)
        and isinstance(content.get('meta'), Mapping)
    ):
        stated = content['meta'].get(WINDOWS_KEY)
        if stated is not None:
            windows = SourceWindows(as_pairs(stated), 'the metadata of the file')
    if windows is None and local is not None and local.config is not None:
        windows = windows_of_config(local.config)
    if windows is None and local is not None:
        windows = windows_of_name(local.name)
    return windows


def load_found(
    backbone: Backbone,
    found: Found,
    where: str,
    windows: SourceWindows | None,
    *,
    allow: Sequence[str] = (),
    logger: MMLogger | str | None = 'current',
) -> LoadReport:
    """Loads weights that are in memory; otherwise as `load_pretrained`.

    Args:
        backbone: What to load into.
        found: The weights.
        where: Where they are from, for the report.
        windows: At which windows they were trained.
        allow: As for `load_pretrained`.
        logger: As for `load_pretrained`.
    """
    family = getattr(backbone, 'checkpoint_family', 'v2')
    if found.layout.family != family:
        right = BACKBONES[found.layout.family]
        raise CheckpointError(
            f'{where} is in the layout {found.layout.name}, for the backbone {right}, and this is a '
            f"{type(backbone).__name__}: build type='{right}' for it"
        )
    targets = {
        key: value for key, value in backbone.state_dict().items() if isinstance(value, Tensor)
    }
    targets.pop(WINDOWS_KEY, None)
    if unbuilt := next((key for key, value in targets.items() if value.is_meta), None):
        raise ValueError(
            f'{unbuilt} of the backbone is on the meta device, which holds no values: backbone.to_empty(device=...) '
            'first'
        )
    report = LoadReport(where, found.layout.name, found.prefix, windows, backbone.window_sizes)
    wanted = _sort_out(found, targets, report)
    report.allow(allow)
    stages = 1 + max((int(key.split('.')[1]) for key in targets if key[:7] == 'layers.'), default=0)
    chosen = choose_windows(
        backbone.pretrained_window_sizes, backbone.window_sizes, windows, stages, where
    )
    report.position_windows = () if family == 'cr' else chosen
    if report.problems:
        raise CheckpointError(
            f'{where} does not fit the backbone: {"; ".join(report.problems)}. {_sizes(found, targets)}; '
            f'what is meant to be so can be allowed by name, init_cfg=dict(allow=[...]).\n{report.table()}'
        )
    with torch.no_grad():
        for key, recipe in wanted.items():
            targets[key].copy_(recipe.make(found.state.__getitem__))
            report.loaded.append(key)
    backbone.retarget(chosen)
    level = logging.WARNING if report.allowed else logging.INFO
    print_log(report.table(), logger=logger, level=level)
    return report


def _sort_out(found: Found, targets: Mapping[str, Tensor], report: LoadReport) -> dict[str, Recipe]:
    """Puts every tensor of file and model on its list in the report; returns how to make those that fit."""
    translation = translate_file(found, report, targets)
    wanted: dict[str, Recipe] = {}
    for key, recipe in translation.recipes.items():
        if key not in targets:
            if _is_not_built(key, targets):
                report.drop('stages and norms that the model does not have', key)
            else:
                report.unexpected[key] = 'the model has no such tensor'
            continue
        sources = [found.state[name] for name in recipe.names]
        if odd := next(filter(None, (_not_weights(item, targets[key]) for item in sources)), None):
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
        if shape != tuple(targets[key].shape):
            report.mismatched[key] = (shape, tuple(targets[key].shape))
        else:
            wanted[key] = recipe
    for key in targets.keys() - translation.recipes.keys():
        (report.fresh if matches_any(_FRESH, key) else report.missing).append(key)
    report.fresh.sort()
    report.missing.sort()
    return wanted


def _not_weights(source: Tensor, target: Tensor) -> str | None:
    """Says why a tensor cannot be copied by value, if so: torch would copy some of these without a word."""
    if source.layout != torch.strided or source.is_meta:
        return f'{"without values" if source.is_meta else source.layout}, not an array of numbers'
    kinds = [
        (item.is_floating_point(), item.is_complex(), item.is_quantized)
        for item in (source, target)
    ]
    return None if kinds[0] == kinds[1] else f'{source.dtype} for {target.dtype}'


def translate_file(found: Found, report: LoadReport, wanted: Collection[str] = ()) -> Translation:
    """Translates the names of a file into ours, and notes in `report` what is no part of the backbone.

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
    """Says whether a tensor is of a stage, a way to a stage or an output norm that the model was built without."""
    if matches_any([_OUTPUT_NORM], key):
        return True
    parts = key.split('.')
    if parts[0] != 'layers':
        return False
    stages = {int(name.split('.')[1]) for name in targets if name.startswith('layers.')}
    stage = int(parts[1])
    return stage not in stages or (parts[2] == 'downsample' and stage == max(stages))


def _sizes(found: Found, targets: Mapping[str, Tensor]) -> str:
    """Returns the sizes of file and model in words: the wrong arch is the commonest reason for what does not fit."""
    recipes = translate(found.state, found.layout, to_ours=True).recipes
    return f'The file has {_size(recipes)}; the model has {_size(targets)}'


def _size(names: Mapping[str, object]) -> str:
    depths: dict[int, int] = {}
    for name in names:
        parts = name.split('.')
        if parts[0] == 'layers' and parts[2] == 'blocks':
            depths[int(parts[1])] = max(depths.get(int(parts[1]), 0), int(parts[3]) + 1)
    return f'depths {[depths[stage] for stage in sorted(depths)]}'
