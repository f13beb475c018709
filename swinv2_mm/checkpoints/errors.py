"""Exceptions whose message is all that a user needs."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint is damaged or does not fit."""


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint would run code."""


class CheckpointUnavailableError(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist on this machine and cannot be downloaded."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ''  # OSError would print its errno fields
