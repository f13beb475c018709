"""The window in the config against the window in the file: which of them the position bias is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.windows import Pair, SourceWindows, as_pairs, describe_windows

Configured = tuple[Pair, ...] | Literal['auto']


def choose_windows(
    configured: Configured,
    own: Sequence[Pair],
    windows: SourceWindows | None,
    num_stages: int,
    where: str,
) -> tuple[Pair, ...]:
    """Decides by which windows coordinates are divided once weights are loaded.

    Args:
        configured: What the config says about the windows of the weights, 0 for the model's own.
        own: The windows of the model, one per stage.
        windows: What the file says.
        num_stages: How many stages the model was built with.
        where: Name of the file, for messages.

    Returns:
        One window per entry of `own`.

    Raises:
        CheckpointError: File and config contradict each other, or neither says anything.
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
    # A file's name may have been changed; what is in the file counts.
    if windows is not None and windows.is_certain:
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
    """Decides the same when one of our own state dicts is loaded, which keeps the windows as a tensor.

    Args:
        stored: `(stages, 2)`.
        configured: As for `choose_windows`.
        own: As for `choose_windows`.
        num_stages: As for `choose_windows`.

    Raises:
        CheckpointError: The two contradict each other.
    """
    windows = SourceWindows(as_pairs(stored), 'its pretrained_window_sizes')
    return choose_windows(configured, own, windows, num_stages, 'the checkpoint')
