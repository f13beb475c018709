"""What the terminal shows of a crash: the error, its place, what to do, and where the full traceback is."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from pathlib import Path

import torch

from swinv2_mm.engine.console import fail, log_file, log_only

_LIBRARIES = ('swinv2_mm', 'mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine')
"""Packages whose frames tell a user more than those of torch or numpy."""
_LOST_WORKER = 'data loader lost its worker'
_HINTS = {
    'out of memory': 'lower train_dataloader.batch_size, set model.backbone.with_cp=True (recomputes activations), '
    'use --amp, or train on smaller images',
    'FloatingPointError|infinite or NaN': 'lower the learning rate, lengthen the warm-up, or clip gradients with '
    'optim_wrapper.clip_grad=dict(max_norm=1.0)',
    f'DataLoader worker.*(killed|exited unexpectedly)|{_LOST_WORKER}': 'a data loading process died, usually because '
    'memory ran out: lower train_dataloader.num_workers; in a container give it shared memory (docker run '
    '--shm-size=8g)',
    '[Bb]us error|shared memory': 'shared memory is full: give the container more (docker run --shm-size=8g), or set '
    'num_workers=0',
    'device-side assert': 'usually a label out of range: run once with --device cpu, where the message is exact',
    r'mmcv\._ext': "the config lacks custom_imports=dict(imports=['swinv2_mm']), which provides mmcv's operators",
    'ddress already in use|EADDRINUSE': 'another run uses this port: PORT=29501 tools/dist_train.sh ...',
    'No space left on device': 'the disk is full',
    'Expected more than 1 value per channel': 'batch norm cannot train on one image here: a larger '
    'train_dataloader.batch_size, or drop_last=True',
    'image size in a batch should be the same|stack expects each tensor to be equal size': 'images of several sizes '
    'in one batch: set the batch_size of that data loader to 1, or resize to one size',
    'divisible by num_groups': 'choose a norm_cfg.num_groups that divides the number of channels',
}
"""Regular expressions for kind and message of an error, and what to do."""


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def find_outside_cause(error: BaseException) -> str | None:
    """Return a sentence about an error that comes from the file system and not from the program."""
    log = log_file()
    if log and (not Path(log).is_file() or _lost_folder(error, Path(log).parent)):
        return f'The work directory {Path(log).parents[1]} was removed or unmounted during the run.'
    cause: BaseException | None = error
    while cause is not None and 'No usable temporary directory' not in str(cause):
        cause = (
            cause.__cause__ or cause.__context__
        )  # mmengine's clean-up of a config raises another
    if cause is not None:
        return 'No folder for temporary files can be written to: set TMPDIR to one.'
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return (
            f'{error.filename or "A file"} cannot be written ({error.strerror}); earlier checkpoints are unchanged: '
            'free space, then continue with --resume.'
        )
    return None


def _lost_folder(error: BaseException, run: Path) -> bool:
    """Return whether a file cannot be written since a folder of the run is gone, as while the run is being removed."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return False
    file = Path(error.filename).absolute()
    return run in file.parents and not file.parent.is_dir()


def report_failure(error: BaseException, rank: int) -> None:
    """Write the full traceback to the log file, and what a user needs of it to the terminal."""
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    log = log_only(text)
    if log is None:  # the run broke before it had a log file, or is not the first process
        print(text, file=sys.stderr, end='')
    lines = [f'{type(error).__name__}: {_message(error)}', f'  at {_place(error)}']
    if hint := find_hint(error):
        lines.append(f'  hint: {hint}')
    if log:
        lines.append(f'  full traceback: {log}')
    for line in lines:
        fail(line, rank)


def was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error goes back to Ctrl-C.

    Libraries catch every exception in some places and raise another: mmengine reports a config that it was writing as
    the signal came as a syntax error.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def find_hint(error: BaseException) -> str | None:
    """Return what to do about an error, where that is known."""
    text = f'{type(error).__name__}: {error}'
    if isinstance(error, torch.cuda.OutOfMemoryError):
        text += ' out of memory'
    # torch does not translate what the sockets of a killed worker raise.
    if isinstance(error, (ConnectionError, EOFError)) and any(
        Path(frame.filename).name == 'dataloader.py'
        for frame in traceback.extract_tb(error.__traceback__)
    ):
        text += f' {_LOST_WORKER}'
    return next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), None)


def _message(error: BaseException) -> str:
    """Return the message in one line; of an error in a data loading process, the original one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return 'no message'
    if 'Original Traceback' in str(error):
        return f'{lines[-1]} (in a data loading process)'
    line = ' '.join(lines)
    return line if len(line) <= 500 else f'{line[:500]} ...'


def _place(error: BaseException) -> str:
    """Return file, line and function of the innermost frame that means something to a user."""
    # The message of an error in a data loading process holds that process's traceback.
    inside = re.findall(r'File "(.+?)", line (\d+), in (\S+)', str(error))
    frames = inside or [
        (frame.filename, str(frame.lineno), frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    if not frames:
        return 'an unknown place'
    known = [frame for frame in frames if any(name in Path(frame[0]).parts for name in _LIBRARIES)]
    file, line, function = (known or frames)[-1]
    return f'{file}:{line} in {function}'
