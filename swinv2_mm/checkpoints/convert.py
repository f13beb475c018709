"""Writing checkpoints: in another library's layout, or as weights alone for others to use."""

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
from swinv2_mm.checkpoints.windows import Pair, SourceWindows, stored_windows

WRITABLE = tuple(layout.name for layout in LAYOUTS if layout.writable)
_SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')


def convert_state(
    found: Found, to: str, report: LoadReport, windows: SourceWindows | None = None
) -> dict[str, Tensor]:
    """Converts the weights of a backbone to another layout.

    Args:
        found: The weights.
        to: Name of the layout.
        report: Receives what happened to every tensor.
        windows: At which windows they were trained; kept where the layout has a place for it.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: The layout cannot be written, or a tensor of the backbone has no place in it.
    """
    layout = target_layout(to, found)
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


def target_layout(to: str, found: Found) -> Layout:
    """Returns the layout called `to`; `'native'` is that of the family of the weights.

    Raises:
        CheckpointError: There is none, or it cannot be written from these weights.
    """
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
    """Converts a checkpoint of any known layout to another one.

    Args:
        source: A file, or an address as in `swinv2_mm.checkpoints.sources`.
        target: The file to write, `.pth` or `.safetensors`.
        to: Name of the layout to write.
        dry_run: Writes nothing.

    Returns:
        The report; `loaded` are the names written.

    Raises:
        FileNotFoundError: There is no such file or folder, or it cannot be downloaded.
        CheckpointError: The file cannot be converted.
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
        layout = target_layout(to, found)
        save_weights(state, target, layout, windows.windows if windows else None)
    return report


def save_weights(
    state: Mapping[str, Tensor],
    target: Path,
    layout: Layout,
    windows: tuple[Pair, ...] | None = None,
) -> None:
    """Writes weights where a reader of the layout looks for them, with the windows beside them.

    Args:
        state: Tensors by name.
        target: The file, `.pth` or `.safetensors`.
        layout: The layout.
        windows: At which windows the weights were trained.
    """
    # Views of one mapped file or of one another: written separately, each with its own numbers only.
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    meta = {} if windows is None else {WINDOWS_KEY: [list(pair) for pair in windows]}
    content: Any = dict(state)
    if layout.container is not None:
        content = {layout.container: dict(state), 'meta': meta}
    # transformers reads no safetensors file that does not state its format.
    write_file(content, state, {'format': 'pt', 'meta': json.dumps(meta)}, target)


def write_file(
    content: Any, state: Mapping[str, Tensor], metadata: Mapping[str, str], target: Path
) -> None:
    """Writes a checkpoint; a broken write leaves nothing under its name.

    Args:
        content: What a `.pth` file holds.
        state: The tensors of a `.safetensors` file.
        metadata: What else that file says.
        target: The file.
    """
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        if target.suffix == '.safetensors':
            from safetensors.torch import save_file

            save_file(dict(state), part, metadata=dict(metadata))
        else:
            torch.save(content, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def publish_checkpoint(source: str | Path, target: str | Path) -> Path:
    """Strips a training checkpoint of all but its weights, and puts their hash into the name.

    Args:
        source: The checkpoint of a training run.
        target: The file to write; `model.safetensors` becomes `model-1a2b3c4d.safetensors`.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: There is no such file or folder, or it cannot be downloaded.
        CheckpointError: It is no checkpoint.
    """
    target = Path(target)
    _check_target(target, source)
    content = read_checkpoint_file(fetch_checkpoint(source).path, 'cpu', mmap=True)
    state = {
        key.removeprefix('module.'): value.detach().clone().contiguous()
        for key, value in unwrap(content, str(source)).items()
    }
    # What inference needs beyond the weights: the names of classes and their colours.
    meta = content.get('meta')
    classes = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    kept = {'dataset_meta': classes} if classes else {}
    try:
        stated = json.dumps(kept, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f'{source}: its dataset_meta cannot be kept: {error}') from error
    part = target.with_name(f'.{target.stem}.{os.getpid()}{target.suffix}')
    try:
        # One entry of metadata: safetensors writes several in random order, and the hash would change with it.
        write_file({'state_dict': state, 'meta': kept}, state, {'meta': stated}, part)
        named = target.with_name(f'{target.stem}-{_hash(part)}{target.suffix}')
        os.replace(part, named)
    finally:
        part.unlink(missing_ok=True)
    return named


def _plain(value: Any) -> Any:
    """Returns arrays of numpy and torch as lists, for json."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    raise TypeError(f'json has no {type(value).__name__}')


def _hash(path: Path) -> str:
    """Returns the first eight digits of a file's SHA-256, which torch's hub checks against the name."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:8]


def _check_target(target: Path, source: str | Path) -> None:
    if target.suffix not in _SUFFIXES:
        raise CheckpointError(
            f'{target}: expected a name that ends in one of {", ".join(_SUFFIXES)}'
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f'the folder {target.parent} does not exist')
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise CheckpointError(f'{target} is the source itself: write to another file')
