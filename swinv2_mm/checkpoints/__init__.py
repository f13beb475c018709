"""Checkpoints of any library: recognised, converted, fitted to the window, and never executed."""

from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
)
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.load import Backbone, load_pretrained, split_pretrained
from swinv2_mm.checkpoints.mmengine_seam import guard_mmengine
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.retarget import adopt_stored_windows
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file, trust_checkpoints
from swinv2_mm.checkpoints.windows import stored_windows

__all__ = [
    'WINDOWS_KEY',
    'Backbone',
    'CheckpointError',
    'CheckpointUnavailableError',
    'LoadReport',
    'UntrustedCheckpointError',
    'adopt_stored_windows',
    'guard_mmengine',
    'load_pretrained',
    'read_checkpoint_file',
    'split_pretrained',
    'stored_windows',
    'trust_checkpoints',
]
