"""Exceptions whose message is all that a user needs."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint is damaged or does not fit."""


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint would run code."""


class CheckpointUnavailableError(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist on this machine and cannot be downloaded."""
