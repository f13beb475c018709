"""Write checkpoints: in the layout of another library, or as weights alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_mm.checkpoints.detect import Found, find_backbone, unwrap
from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import LAYOUTS, WINDOWS_KEY, layout_by_name
from swinv2_mm.checkpoints.load import source_windows, translate_file
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.checkpoints.sources import fetch_checkpoint
from swinv2_mm.checkpoints.table import Layout, translate
from swinv2_mm.checkpoints.windows import SourceWindows, stored_windows

WRITABLE = tuple(layout.name for layout in LAYOUTS if layout.writable)
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def convert_state(
    found: Found, to: str, report: LoadReport, windows: SourceWindows | None = None
) -> dict[str, Tensor]:
    """Convert the weights of a backbone to another layout.

    Args:
        found: The weights.
        to: Name of the layout.
        report: Receives what happened to every tensor.
        windows: The windows they were trained at, which the layout `native` keeps.

    Raises:
        CheckpointError: If the layout cannot be written, or lacks a place for a tensor of the backbone.
    """
    layout = _target_layout(to, found)
    get = found.state.__getitem__
    ours = {key: recipe.make(get) for key, recipe in translate_file(found, report).recipes.items()}
    translation = translate(ours, layout, to_ours=False)
    for key in translation.unknown:
        if key.startswith('norm'):
            report.drop(f'output norms, unknown to {to}', key)
        else:
            report.unexpected[key] = f'the layout {to} has no place for it'
    for key, lacking in translation.incomplete.items():
        report.unexpected[key] = f'{to} stores it together with {", ".join(lacking)}'
    if report.unexpected:
        raise CheckpointError(
            f'{report.source} cannot be converted: {"; ".join(report.problems)}\n{report.table()}'
        )
    state = {key: recipe.make(ours.__getitem__) for key, recipe in translation.recipes.items()}
    report.loaded = list(state)
    if to == 'native' and windows is not None:
        state[WINDOWS_KEY] = stored_windows(windows.windows)
    return state


def _target_layout(to: str, found: Found) -> Layout:
    """Return the layout called `to`; `'native'` is that of the family of the weights."""
    family = found.layout.family
    layout = layout_by_name('native-cr' if to == 'native' and family == 'cr' else to)
    if not layout.writable or layout.family != family:
        names = [item.name for item in LAYOUTS if item.writable and item.family == family]
        raise CheckpointError(
            f'cannot write the layout {to} from {found.layout.name}: choose one of {", ".join(names)}'
        )
    return layout


def convert_checkpoint(
    source: str | Path, target: str | Path, to: str = 'native', dry_run: bool = False
) -> LoadReport:
    """Convert a checkpoint of any known layout to another one.

    Args:
        source: A file, or an address of `swinv2_mm.checkpoints.sources`.
        target: The file to write, `.pth` or `.safetensors`.
        to: Name of the layout to write.
        dry_run: Whether to write nothing.

    Returns:
        The report; `loaded` are the names written.

    Raises:
        FileNotFoundError: If the file or the folder does not exist, or cannot be downloaded.
        CheckpointError: If the file cannot be converted.
    """
    target = Path(target)
    _check_target(target, source)
    local = fetch_checkpoint(source)
    content = read_checkpoint_file(local.path, 'cpu', mmap=True)
    found = find_backbone(unwrap(content, str(source)), str(source))
    windows = source_windows(found, local, content)
    report = LoadReport(str(source), found.layout.name, found.prefix, windows)
    state = convert_state(found, to, report, windows)
    if not dry_run:
        state = {key: _own(value) for key, value in state.items()}
        meta = {} if windows is None else {WINDOWS_KEY: [list(pair) for pair in windows.windows]}
        container = _target_layout(to, found).container
        whole = state if container is None else {container: state, 'meta': meta}
        # transformers reads only safetensors files that state their format.
        _write_file(whole, state, {'format': 'pt', 'meta': json.dumps(meta)}, target)
    return report


def _own(tensor: Tensor) -> Tensor:
    """Copy what may be a view of the mapped file or of another tensor, whose numbers would all be written."""
    return tensor.detach().clone().contiguous()


def _write_file(
    content: Any, state: dict[str, Tensor], metadata: dict[str, str], target: Path
) -> None:
    """Write `content` to a `.pth` file or `state` and `metadata` to `.safetensors`; nothing after an error."""
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        if target.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file(state, part, metadata=metadata)
        else:
            torch.save(content, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def publish_checkpoint(source: str | Path, target: str | Path) -> Path:
    """Remove all but the weights from a training checkpoint, and put their hash into the name.

    Args:
        source: The checkpoint.
        target: The file to write; `model.safetensors` becomes `model-1a2b3c4d.safetensors`.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If the file or the folder does not exist, or cannot be downloaded.
        CheckpointError: If it is not a checkpoint.
    """
    target = Path(target)
    _check_target(target, source)
    content = read_checkpoint_file(fetch_checkpoint(source).path, 'cpu', mmap=True)
    state = {
        key.removeprefix('module.'): _own(value)
        for key, value in unwrap(content, str(source)).items()
    }
    # For inference: the names of classes and their colours.
    meta = content.get('meta')
    classes = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    kept = {'dataset_meta': classes} if classes else {}
    try:
        stated = json.dumps(kept, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{source}: its dataset_meta cannot be kept: {error}') from error
    part = target.with_name(f'.{target.stem}.{os.getpid()}{target.suffix}')
    try:
        # One entry of metadata: safetensors writes several in random order, which would change the hash.
        _write_file({'state_dict': state, 'meta': kept}, state, {'meta': stated}, part)
        # torch.hub compares the first eight digits with the name.
        digest = hashlib.sha256()
        with part.open('rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        named = target.with_name(f'{target.stem}-{digest.hexdigest()[:8]}{target.suffix}')
        os.replace(part, named)
    finally:
        part.unlink(missing_ok=True)
    return named


def _plain(value: Any) -> Any:
    """Return arrays of numpy and torch as lists, for json."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    raise TypeError(f'json has no {type(value).__name__}')


def _check_target(target: Path, source: str | Path) -> None:
    if target.suffix not in _SUFFIXES:
        raise CheckpointError(
            f'{target}: expected a name that ends in one of {", ".join(_SUFFIXES)}'
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f'the folder {target.parent} does not exist')
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise CheckpointError(f'{target} is the source itself: write to another file')
