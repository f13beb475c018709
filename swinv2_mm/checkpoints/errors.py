"""Exceptions whose message is all that a user needs, and whether checkpoints are trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

trusting: ContextVar[bool] = ContextVar('trusting', default=False)


class CheckpointError(ValueError):
    """A checkpoint is damaged or does not fit."""


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint would run code."""


class CheckpointUnavailableError(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist on this machine and cannot be downloaded."""


@contextlib.contextmanager
def trust_checkpoints(trust: bool = True) -> Iterator[None]:
    """Allow checkpoints to run code inside this context, as `--trust-checkpoint` does; nothing if `trust` is False."""
    token = trusting.set(trust or trusting.get())
    try:
        yield
    finally:
        trusting.reset(token)
