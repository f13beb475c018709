"""The windows that weights were trained at: read from the file or beside it, and compared with the config.

The position bias of SwinV2 is an MLP of relative coordinates, divided by the size of the training window. In files that
were fine-tuned at a larger window (`window12to16`), that is the first window, not the one attention ran in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.table import Layout, fill

Pair = tuple[int, int]
Configured = tuple[Pair, ...] | Literal['auto']
_PATCH, _NUM_STAGES = 4, 4
_LOGIT_SCALE = 'layers.{s}.blocks.{b}.attn.logit_scale'
_MASK = re.compile(r'layers[._](\d+)\.blocks\.\d+\.attn_mask$')
_NAME = re.compile(r'window(\d+)(?:to\d+)?[_-](\d+)(?:to\d+)?')


@dataclass(frozen=True)
class SourceWindows:
    """The windows by which the coordinates of the position bias were divided in training."""

    windows: tuple[Pair, ...]  # `(height, width)` in tokens, one per stage
    evidence: str  # where they were read, for messages
    is_certain: bool = True  # read from the weights, not from the name of a file

    def __str__(self) -> str:
        return f'{describe_windows(self.windows)} ({self.evidence})'


def describe_windows(windows: Sequence[Pair]) -> str:
    """Return windows as a config would write them."""
    return str([pair[0] if pair[0] == pair[1] else pair for pair in windows])


def read_windows(state: Mapping[str, Tensor], layout: Layout) -> SourceWindows | None:
    """Read the windows from the tables in a state dict without prefix; return `None` if it has none."""
    if WINDOWS_KEY in state:
        return SourceWindows(as_pairs(state[WINDOWS_KEY]), f'its {WINDOWS_KEY}')
    # The tables have the prefix of the temperature, which all layouts call the same.
    scale = layout.their_name(_LOGIT_SCALE)
    windows: list[Pair] = []
    while (name := fill(scale, len(windows))) in state:
        table = state.get(name.removesuffix('logit_scale') + 'relative_coords_table')
        if table is None:
            return None
        windows.append(_window_of_coords(table))
    return SourceWindows(tuple(windows), 'its relative_coords_table') if windows else None


def refuse_other_masks(state: Mapping[str, Tensor], own: Sequence[Pair], where: str) -> None:
    """Raise CheckpointError if attention masks in a state dict are of other windows than `own`."""
    for name, mask in state.items():
        stage = _MASK.match(name)
        if stage is None or int(stage[1]) >= len(own) or not mask.dim():
            continue
        height, width = own[int(stage[1])]
        if mask.shape[-1] != height * width:
            raise CheckpointError(
                f'{where} does not tell at which window it was trained, but {name} is of windows of '
                f'{mask.shape[-1]} tokens and the model has {height} x {width}: set pretrained_window_sizes'
            )


def as_pairs(rows: Any) -> tuple[Pair, ...]:
    """Return the windows of a file, a tensor `(stages, 2)` or lists from json, as pairs of integers."""
    stated = rows.tolist() if isinstance(rows, Tensor) else rows
    try:
        pairs = tuple((int(height), int(width)) for height, width in stated)
        # Files converted to half precision as a whole have floats here.
        if pairs == tuple(map(tuple, stated)) and min(map(min, pairs)) > 0:
            return pairs
    except (TypeError, ValueError, OverflowError):
        pass
    raise CheckpointError(
        f'{WINDOWS_KEY} of the checkpoint is {str(stated)[:80]}: expected (height, width) in tokens per stage'
    )


def _window_of_coords(table: Tensor) -> Pair:
    """Solve equation 4 of the paper for the window in a table `(1, 2 * Wh - 1, 2 * Ww - 1, 2)`."""
    odd = all(side % 2 for side in table.shape[1:3])
    if table.dim() != 4 or not len(table) or table.shape[-1] != 2 or not odd:
        raise CheckpointError(
            f'relative_coords_table has shape {tuple(table.shape)}: expected (1, 2 * Wh - 1, 2 * Ww - 1, 2)'
        )
    pair = []
    for axis in (0, 1):
        extent = (table.shape[1 + axis] + 1) // 2
        # sign(x) log2(|x| + 1) / log2(8) at x = 8 (W - 1) / (P - 1)
        scaled = 8 ** table[..., axis].max().double() - 1
        divisor = float(8 * (extent - 1) / scaled)
        # A window of 1 has no extent, and a table of another convention gives no whole number.
        plausible = 0.5 < divisor < 1e4 and abs(divisor - round(divisor)) < 0.01 * divisor
        pair.append(round(divisor) + 1 if plausible else extent)
    return pair[0], pair[1]


def windows_of_name(name: str) -> SourceWindows | None:
    """Read the windows from a name such as `swinv2_base_patch4_window12to16_192to256_22kto1k_ft`.

    The first numbers are those of the pre-training. If the second one cannot be the side of an image, as in
    `my_window8_2`, return `None`.
    """
    match = _NAME.search(name)
    if match is None:
        return None
    window, image = int(match[1]), int(match[2])
    if not window or not image or image % (_PATCH * 2 ** (_NUM_STAGES - 1)):
        return None
    return SourceWindows(_fit(window, image, _PATCH), f'the name {name}', False)


def names_of_arch(content: Mapping[str, Any]) -> list[str]:
    """Return what training scripts state as the name of the model, under `arch` or in `args`."""
    args = content.get('args')
    stated = args if isinstance(args, Mapping) else getattr(args, '__dict__', {})
    names = (content.get('arch'), stated.get('arch'), stated.get('model'))
    return [name for name in names if isinstance(name, str)]


def windows_of_config(config: Mapping[str, Any]) -> SourceWindows | None:
    """Read the windows from the `config.json` of a model of transformers or timm."""
    named = config.get('architecture')  # timm
    if isinstance(named, str):
        return windows_of_name(named)
    try:
        fitted = _fit(*(int(config[key]) for key in ('window_size', 'image_size', 'patch_size')))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    trained = config.get('pretrained_window_sizes') or [0] * _NUM_STAGES
    windows = [[size, size] if size else list(pair) for size, pair in zip(trained, fitted)]
    return SourceWindows(as_pairs(windows), 'its config.json')


def _fit(window: int, image: int, patch: int) -> tuple[Pair, ...]:
    """Return the windows of all stages: that of a stage is at most its map."""
    sizes = (min(window, image // patch // 2**stage) for stage in range(_NUM_STAGES))
    return tuple((size, size) for size in sizes)


def stored_windows(windows: Sequence[Pair]) -> Tensor:
    """Return windows as the tensor that our own files keep under `pretrained_window_sizes`."""
    return torch.tensor([list(pair) for pair in windows], dtype=torch.int64)


def choose_windows(
    configured: Configured,
    own: Sequence[Pair],
    windows: SourceWindows | None,
    num_stages: int,
    where: str,
) -> tuple[Pair, ...]:
    """Return the windows by which coordinates are divided once weights are loaded, one per entry of `own`.

    `configured` are those of the weights in the config, 0 for the model's own, and `windows` those in the file. If
    neither states them, they are the model's own, with a warning.

    Raises:
        CheckpointError: If file and config contradict each other; the message names `where`.
    """
    if isinstance(configured, str):
        if windows is None:
            print_log(
                f'{where} does not tell at which window it was trained: taken as that of the model, '
                f'{describe_windows(own)}. If it was another one, set pretrained_window_sizes.',
                logger='current',
                level=logging.WARNING,
            )
            return tuple(own)
        if len(windows.windows) < num_stages:
            raise CheckpointError(
                f'{where} was trained at windows {windows}, but the model has {num_stages} stages'
            )
        return (*windows.windows, *own[len(windows.windows) :])[: len(own)]
    stated = tuple(
        (pair[0] or window[0], pair[1] or window[1]) for pair, window in zip(configured, own)
    )
    if windows is not None and windows.is_certain:  # files may be renamed
        theirs = windows.windows[:num_stages]
        if stated[: len(theirs)] != theirs:
            raise CheckpointError(
                f'the config says pretrained_window_sizes={describe_windows(stated)}, but {where} was trained at '
                f"{describe_windows(theirs)} ({windows.evidence}): say 'auto', or what the file says"
            )
    return stated


def adopt_stored_windows(
    stored: Tensor, configured: Configured, own: Sequence[Pair], num_stages: int
) -> tuple[Pair, ...]:
    """Return the windows of `choose_windows` for a state dict of ours, which keeps them as a tensor `(stages, 2)`."""
    windows = SourceWindows(as_pairs(stored), 'its pretrained_window_sizes')
    return choose_windows(configured, own, windows, num_stages, 'the checkpoint')
