"""What the console says when a run breaks: what, where, what to do, and where the whole story is."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from swinv2_mm.engine.console import Console

_LIBRARIES = ('swinv2_mm', 'mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine')
"""Packages whose frames tell a user more than those of torch or numpy."""

_HINTS: tuple[tuple[Callable[[BaseException, str], bool], str], ...] = (
    (
        lambda error, text: (
            isinstance(error, torch.cuda.OutOfMemoryError) or 'out of memory' in text
        ),
        'lower train_dataloader.batch_size, set model.backbone.with_cp=True (recomputes activations), use --amp, '
        'or train on smaller images',
    ),
    (
        lambda error, text: isinstance(error, FloatingPointError) or 'infinite or NaN' in text,
        'lower the learning rate, lengthen the warm-up, or clip gradients with '
        'optim_wrapper.clip_grad=dict(max_norm=1.0)',
    ),
    (
        lambda error, text: (
            'DataLoader worker' in text and ('killed' in text or 'exited unexpectedly' in text)
        ),
        'a data loading process died, mostly for want of memory: lower train_dataloader.num_workers; in a container '
        'give it shared memory (docker run --shm-size=8g)',
    ),
    (
        lambda error, text: 'bus error' in text.lower() or 'shared memory' in text,
        'shared memory is full: give the container more (docker run --shm-size=8g), or set num_workers=0 and '
        'persistent_workers=False',
    ),
    (
        lambda error, text: 'device-side assert' in text,
        'mostly a label out of range: run once with --device cpu, where the message is exact',
    ),
    (
        lambda error, text: 'mmcv._ext' in text,
        "the config lacks custom_imports=dict(imports=['swinv2_mm']), which provides mmcv's operators",
    ),
    (
        lambda error, text: 'ddress already in use' in text or 'EADDRINUSE' in text,
        'another run uses this port: PORT=29501 tools/dist_train.sh ...',
    ),
    (
        lambda error, text: isinstance(error, OSError) and error.errno == 28,
        'the disk is full',
    ),
)


def report_failure(error: BaseException, console: Console) -> None:
    """Writes the full traceback to the log file, and what a user needs of it to the console."""
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    log = console.ensure_log()
    console.log(text, 'traceback')
    console.fail(f'{type(error).__name__}: {_message(error)}')
    console.fail(f'  at {_place(error)}')
    hint = find_hint(error)
    if hint:
        console.fail(f'  hint: {hint}')
    console.fail(f'  full traceback: {log}')


def was_interrupted(error: BaseException | None) -> bool:
    """Says whether an error goes back to Ctrl-C.

    Libraries catch everything here and there and raise something else: mmengine calls a config that it was writing as
    the signal came a syntax error.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def find_hint(error: BaseException) -> str | None:
    """Returns what to do about an error, where that is known."""
    text = str(error)
    return next((hint for matches, hint in _HINTS if matches(error, text)), None)


def _message(error: BaseException) -> str:
    """Returns the message in one line; of an error in a data loading process, the original one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return 'no message'
    if 'Original Traceback' in str(error):
        return f'{lines[-1]} (in a data loading process)'
    line = ' '.join(lines)
    return line if len(line) <= 500 else f'{line[:500]} ...'


def _place(error: BaseException) -> str:
    """Returns file, line and function of the innermost frame that means something to a user."""
    inside = re.findall(
        r'File "(.+?)", line (\d+), in (\S+)', str(error)
    )  # a data loading process's traceback
    frames = inside or [
        (frame.filename, str(frame.lineno), frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    known = [frame for frame in frames if any(name in Path(frame[0]).parts for name in _LIBRARIES)]
    if not frames:
        return 'an unknown place'
    file, line, function = (known or frames)[-1]
    return f'{file}:{line} in {function}'
