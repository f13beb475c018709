"""What goes wrong with checkpoints, in exceptions whose message is all that a user needs."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be used: its content does not fit, or the file is broken."""


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint holds more than weights, and loading it would mean running code it brings along."""


class CheckpointUnavailableError(CheckpointError, FileNotFoundError):
    """A checkpoint is neither on this machine nor can it be downloaded."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ''  # OSError would print its errno fields
