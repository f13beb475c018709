"""At which window were the weights trained? Reading it off the file, or off what lies beside it.

The position bias of SwinV2 is an MLP of relative coordinates, in units of the training window. Two windows are told
apart here: the one attention ran in, and the one the coordinates were divided by. They differ in files that were
fine-tuned at a larger window (`window12to16`), and only the second matters to whoever loads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.table import Layout, fill

Pair = tuple[int, int]
_PATCH = 4
_ATTENTION = 'layers.{s}.blocks.{b}.attn.'
_NAME = re.compile(r'window(\d+)(?:to\d+)?[_-](\d+)(?:to\d+)?')


@dataclass(frozen=True)
class SourceWindows:
    """The windows by which the coordinates of the position bias were divided in training.

    Attributes:
        windows: `(height, width)` in tokens, one per stage.
        evidence: Where they were read, in words.
        is_certain: Whether the weights themselves say so, not just the name of a file.
    """

    windows: tuple[Pair, ...]
    evidence: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f'{describe_windows(self.windows)} ({self.evidence})'


def describe_windows(windows: Sequence[Pair]) -> str:
    """Returns windows as a config would write them."""
    return str([pair[0] if pair[0] == pair[1] else pair for pair in windows])


def read_windows(state: Mapping[str, Tensor], layout: Layout) -> SourceWindows | None:
    """Reads the windows off the tables in a state dict; None if there are none.

    Args:
        state: Tensors by name, without prefix.
        layout: How they are named.

    Raises:
        CheckpointError: A table is damaged.
    """
    if WINDOWS_KEY in state:
        return SourceWindows(as_pairs(state[WINDOWS_KEY]), f'its {WINDOWS_KEY}')
    # The tables lie beside the temperature, which no layout renames.
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
    """Returns rows of two numbers as pairs of integers.

    Args:
        rows: What a file holds as windows: a tensor `(stages, 2)`, or rows as json has them.

    Raises:
        CheckpointError: They are no windows.
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
    # Whoever halves the precision of a whole file makes numbers with a point of them.
    return isinstance(side, (int, float)) and side >= 1 and float(side).is_integer()


def _window_of_coords(table: Tensor) -> Pair:
    """Solves equation 4 for the window it was normalised by.

    Args:
        table: `(1, 2 * Wh - 1, 2 * Ww - 1, 2)`.
    """
    sides = table.shape[1:3]
    if (
        table.dim() != 4
        or not len(table)
        or table.shape[-1] != 2
        or not all(side % 2 for side in sides)
    ):
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
    """Solves the index of token pairs for height and width.

    A window of N x 1 tokens has the same index as one of 1 x N, and is taken for that.

    Args:
        index: `(N, N)` or `(N * N,)` with N = Wh * Ww.
    """
    flat = index.reshape(-1).tolist()
    num_tokens = math.isqrt(len(flat))
    for height in range(1, num_tokens + 1):
        width = num_tokens // height
        if (height * width) ** 2 != len(flat):
            continue
        # The first token as seen by itself, and the one at the end of its row: the wider window comes first here,
        # since a narrower one would fit the beginning of a row, too.
        itself = (height - 1) * (2 * width - 1) + width - 1
        if flat[0] == itself and flat[width - 1] == itself - (width - 1):
            return height, width
    raise CheckpointError(
        f'relative_position_index of shape {tuple(index.shape)} belongs to no window'
    )


def windows_of_name(name: str, num_stages: int = 4) -> SourceWindows | None:
    """Reads the windows off a name such as `swinv2_base_patch4_window12to16_192to256_22kto1k_ft`.

    The first numbers count, those of the pre-training, in which the coordinates got their unit. Where the map of a
    stage was smaller than the window, the window was the map. A second number that cannot be the side of an image, as
    in `my_window8_2`, makes it another kind of name.
    """
    match = _NAME.search(name)
    if match is None:
        return None
    window, image = int(match[1]), int(match[2])
    if not window or not image or image % (_PATCH * 2 ** (num_stages - 1)):
        return None
    return SourceWindows(_fit(window, image, _PATCH, num_stages), f'the name {name}', False)


def windows_of_config(config: Mapping[str, Any], num_stages: int = 4) -> SourceWindows | None:
    """Reads the windows off the `config.json` of a model of transformers or timm."""
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
    """Returns windows as the tensor that our own files keep under `pretrained_window_sizes`."""
    return torch.tensor([list(pair) for pair in windows], dtype=torch.int64)
