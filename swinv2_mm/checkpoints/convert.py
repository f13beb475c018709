"""Write checkpoints: in the layout of another library, or as weights alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import dump
from mmengine.logging import print_log
from safetensors.torch import save_file
from torch import Tensor

from swinv2_mm.checkpoints.detect import Found, prefer_averaged, require_finite, unwrap
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import LAYOUTS, SIMMIM, WINDOWS_KEY, layout_by_name
from swinv2_mm.checkpoints.load import read_backbone, translate_file
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.sources import fetch_checkpoint, file_hash
from swinv2_mm.checkpoints.table import Layout, translate
from swinv2_mm.checkpoints.windows import SourceWindows, stored_windows

# The official layout holds the same as SimMIM's.
WRITABLE = tuple(layout.name for layout in LAYOUTS if layout is not SIMMIM)
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def convert_state(
    found: Found, to: str, report: LoadReport, windows: SourceWindows | None = None
) -> dict[str, Tensor]:
    """Convert weights to the layout called `to`, and add to `report` what happened to every tensor.

    The layout `native` keeps the windows. CheckpointError says that a layout lacks a place for a tensor.
    """
    layout = _target_layout(to, found)
    ours = {key: recipe.make(found.state) for key, recipe in translate_file(found, report).items()}
    recipes, unknown = translate(ours, layout, to_ours=False)
    for key, lacking in unknown.items():
        if key.startswith('norm'):
            report.drop(f'output norms, unknown to {to}', key)
        else:
            together = f'{to} stores it together with {", ".join(lacking)}'
            report.unexpected[key] = together if lacking else f'{to} has no place for it'
    if report.unexpected:
        raise CheckpointError(
            f'{report.source} cannot be converted: {"; ".join(report.problems)}\n{report.table()}'
        )
    state = {key: recipe.make(ours) for key, recipe in recipes.items()}
    require_finite(state, report.source)
    report.loaded = list(state)
    if to == 'native' and windows is not None:
        state[WINDOWS_KEY] = stored_windows(windows.windows)
    return state


def _target_layout(to: str, found: Found) -> Layout:
    """Return the layout called `to`; `'native'` is that of the family of the weights."""
    family = found.layout.family
    layout = layout_by_name('native-cr' if to == 'native' and family == 'cr' else to)
    if layout.name not in WRITABLE or layout.family != family:
        names = [name for name in WRITABLE if layout_by_name(name).family == family]
        raise CheckpointError(
            f'cannot write the layout {to} from {found.layout.name}: choose one of {", ".join(names)}'
        )
    return layout


def convert_checkpoint(
    source: str | Path, target: str | Path, to: str = 'native', dry_run: bool = False
) -> LoadReport:
    """Convert a checkpoint, a file or an address of `swinv2_mm.checkpoints.sources`, to the layout called `to`.

    The report has the names written as `loaded`. With `dry_run`, nothing is written.

    Raises:
        FileNotFoundError: If the file or the folder does not exist, or cannot be downloaded.
        CheckpointError: If the file cannot be converted.
    """
    target = _check_target(target, source)
    found, windows = read_backbone(str(source))
    report = LoadReport(str(source), found.layout.name, found.prefix, windows)
    report.choice = found.choice
    state = convert_state(found, to, report, windows)
    if not dry_run:
        meta = {} if windows is None else {WINDOWS_KEY: [list(pair) for pair in windows.windows]}
        _write_file(state, meta, target, _target_layout(to, found).container)
    return report


def publish_checkpoint(source: str | Path, target: str | Path) -> Path:
    """Remove all but the weights from a training checkpoint, and put their hash into the name; return the file.

    The target `model.safetensors` becomes `model-1a2b3c4d.safetensors`.

    Raises:
        FileNotFoundError: If the file or the folder does not exist, or cannot be downloaded.
        CheckpointError: If it is not a checkpoint.
    """
    target = _check_target(target, source)
    content = fetch_checkpoint(source).read(mmap=True)
    weights = unwrap(content, str(source))
    if choice := prefer_averaged(dict(content)):
        print_log(f'{source}: {choice}.', logger='current', level=logging.WARNING)
    require_finite(weights, str(source))
    meta = content.get('meta')
    # For inference: the names of classes and their colours.
    classes = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    kept = {'dataset_meta': classes} if classes else {}
    state = {key.removeprefix('module.'): value for key, value in weights.items()}
    try:
        return _write_file(state, kept, target, 'state_dict', hashed=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{source}: its dataset_meta cannot be kept: {error}') from error


def _write_file(
    state: dict[str, Tensor], meta: Any, target: Path, container: str | None, hashed: bool = False
) -> Path:
    """Write weights and metadata, with a hash in the name if `hashed`; return the file. Nothing after an error."""
    # What may be a view of the mapped file or of another tensor, whose numbers would all be written.
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    stated = dump(meta, file_format='json')
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        if target.suffix == '.safetensors':
            # transformers reads only files that state their format; several entries have a random order.
            save_file(state, part, {'meta': stated} if hashed else {'format': 'pt', 'meta': stated})
        else:
            torch.save(state if container is None else {container: state, 'meta': meta}, part)
        if hashed:  # torch.hub compares the first eight digits with the name
            target = target.with_name(f'{target.stem}-{file_hash(part)[:8]}{target.suffix}')
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _check_target(target: str | Path, source: str | Path) -> Path:
    target = Path(target)
    if target.suffix not in _SUFFIXES:
        raise CheckpointError(f'{target}: expected a name that ends in one of {_SUFFIXES}')
    if not target.parent.is_dir():
        raise FileNotFoundError(f'the folder {target.parent} does not exist')
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise CheckpointError(f'{target} is the source itself: write to another file')
    return target
