"""Load and convert checkpoints of many libraries, at any window, without running code from them."""

from swinv2_mm.checkpoints.errors import (
    CheckpointError,
    CheckpointUnavailableError,
    UntrustedCheckpointError,
    trust_checkpoints,
)
from swinv2_mm.checkpoints.guard import guard_mmengine
from swinv2_mm.checkpoints.layouts import WINDOWS_KEY
from swinv2_mm.checkpoints.load import load_pretrained, split_pretrained
from swinv2_mm.checkpoints.report import LoadReport
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.checkpoints.windows import adopt_stored_windows, stored_windows

__all__ = [
    'WINDOWS_KEY',
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
