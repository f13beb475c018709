"""The windows that weights were trained at: read from the file or beside it, and compared with the config.

The position bias of SwinV2 is an MLP of relative coordinates, divided by the size of the training window. In files that
were fine-tuned at a larger window (`window12to16`), that is the first window, not the one attention ran in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.table import Layout, fill

Pair = tuple[int, int]
Configured = tuple[Pair, ...] | Literal['auto']
_PATCH = 4
_ATTENTION = 'layers.{s}.blocks.{b}.attn.'
_NAME = re.compile(r'window(\d+)(?:to\d+)?[_-](\d+)(?:to\d+)?')


@dataclass(frozen=True)
class SourceWindows:
    """The windows by which the coordinates of the position bias were divided in training.

    Attributes:
        windows: `(height, width)` in tokens, one per stage.
        evidence: Where they were read, for messages.
        is_certain: Whether they were read from the weights, not from the name of a file.
    """

    windows: tuple[Pair, ...]
    evidence: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f'{describe_windows(self.windows)} ({self.evidence})'


def describe_windows(windows: Sequence[Pair]) -> str:
    """Return windows as a config would write them."""
    return str([pair[0] if pair[0] == pair[1] else pair for pair in windows])


def read_windows(state: Mapping[str, Tensor], layout: Layout) -> SourceWindows | None:
    """Read the windows from the tables in a state dict without prefix; return `None` if it has none.

    Raises:
        CheckpointError: If a table is damaged.
    """
    if WINDOWS_KEY in state:
        return SourceWindows(as_pairs(state[WINDOWS_KEY]), f'its {WINDOWS_KEY}')
    # The tables have the prefix of the temperature, which all layouts call the same.
    scale = layout.their_name(_ATTENTION + 'logit_scale')
    beside = scale.removesuffix('logit_scale')
    windows: list[Pair] = []
    evidence = ''
    while fill(scale, len(windows)) in state:
        attention = fill(beside, len(windows))
        coords = state.get(attention + 'relative_coords_table')
        index = state.get(attention + 'relative_position_index')
        if coords is not None:
            windows.append(_window_of_coords(coords))
            evidence = 'its relative_coords_table'
        elif index is not None:
            windows.append(_window_of_index(index))
            evidence = 'its relative_position_index'
        else:
            return None
    return SourceWindows(tuple(windows), evidence) if windows else None


def as_pairs(rows: Any) -> tuple[Pair, ...]:
    """Return the windows of a file, a tensor `(stages, 2)` or lists from json, as pairs of integers.

    Raises:
        CheckpointError: If they are not windows.
    """
    if isinstance(rows, Tensor):
        rows = rows.tolist()
    pairs = []
    for row in rows if isinstance(rows, (list, tuple)) else [rows]:
        sides = row if isinstance(row, (list, tuple)) else []
        if len(sides) != 2 or not all(map(_is_size, sides)):
            raise CheckpointError(
                f'{WINDOWS_KEY} of the checkpoint is {str(rows)[:80]}: expected (height, width) in tokens per stage'
            )
        pairs.append((int(sides[0]), int(sides[1])))
    return tuple(pairs)


def _is_size(side: Any) -> bool:
    # Files converted to half precision as a whole have floats here.
    return isinstance(side, (int, float)) and side >= 1 and float(side).is_integer()


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
        largest = float(table[..., axis].max())
        scaled = 8**largest - 1 if largest < 100 else math.inf
        divisor = 8 * (extent - 1) / scaled if math.isfinite(scaled) and scaled > 0 else 0.0
        normalised = round(divisor)
        # A window of 1 has no extent, and a table of another convention gives no whole number.
        plausible = extent > 1 and normalised >= 1 and abs(divisor - normalised) < 0.01 * normalised
        pair.append(normalised + 1 if plausible else extent)
    return pair[0], pair[1]


def _window_of_index(index: Tensor) -> Pair:
    """Solve an index of token pairs, `(N, N)` or `(N * N,)` with N = Wh * Ww, for height and width.

    A window of N x 1 tokens has the same index as one of 1 x N, which is returned.
    """
    flat = index.reshape(-1).tolist()
    num_tokens = math.isqrt(len(flat))
    for height in range(1, num_tokens + 1):
        width = num_tokens // height
        if (height * width) ** 2 != len(flat):
            continue
        # The first token relative to itself, and the last one of its row. Wider windows are tried first, since a
        # narrower one fits the beginning of a row as well.
        itself = (height - 1) * (2 * width - 1) + width - 1
        if flat[0] == itself and flat[width - 1] == itself - (width - 1):
            return height, width
    raise CheckpointError(
        f'relative_position_index of shape {tuple(index.shape)} belongs to no window'
    )


def windows_of_name(name: str, num_stages: int = 4) -> SourceWindows | None:
    """Read the windows from a name such as `swinv2_base_patch4_window12to16_192to256_22kto1k_ft`.

    The first numbers are those of the pre-training. The window of a stage is at most its map. If the second number
    cannot be the side of an image, as in `my_window8_2`, return `None`.
    """
    match = _NAME.search(name)
    if match is None:
        return None
    window, image = int(match[1]), int(match[2])
    if not window or not image or image % (_PATCH * 2 ** (num_stages - 1)):
        return None
    return SourceWindows(_fit(window, image, _PATCH, num_stages), f'the name {name}', False)


def windows_of_config(config: Mapping[str, Any], num_stages: int = 4) -> SourceWindows | None:
    """Read the windows from the `config.json` of a model of transformers or timm."""
    named = config.get('architecture')  # timm
    if isinstance(named, str):
        return windows_of_name(named, num_stages)
    try:
        window, image, patch = (
            int(config[key]) for key in ('window_size', 'image_size', 'patch_size')
        )
        fitted = _fit(window, image, patch, num_stages)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    trained = config.get('pretrained_window_sizes') or [0] * num_stages
    windows = [[size, size] if size else list(pair) for size, pair in zip(trained, fitted)]
    return SourceWindows(as_pairs(windows), 'its config.json')


def _fit(window: int, image: int, patch: int, num_stages: int) -> tuple[Pair, ...]:
    sizes = (min(window, image // patch // 2**stage) for stage in range(num_stages))
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

    Args:
        configured: The windows of the weights in the config, 0 for the model's own.
        own: The windows of the model, one per stage.
        windows: The windows in the file.
        num_stages: The number of stages that the model was built with.
        where: Name of the file, for messages.

    Raises:
        CheckpointError: If file and config contradict each other, or neither has them.
    """
    if isinstance(configured, str):
        if windows is None:
            raise CheckpointError(
                f'{where} does not tell at which window it was trained: set pretrained_window_sizes, e.g. to '
                f'{describe_windows(own)}'
            )
        if len(windows.windows) < num_stages:
            raise CheckpointError(
                f'{where} was trained at windows {windows}, which are for {len(windows.windows)} stages; the model has '
                f'{num_stages}'
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
    """Return the same for a state dict of ours, which keeps the windows as a tensor `(stages, 2)`."""
    windows = SourceWindows(as_pairs(stored), 'its pretrained_window_sizes')
    return choose_windows(configured, own, windows, num_stages, 'the checkpoint')
