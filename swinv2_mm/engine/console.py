"""What a run logs, how much of it the terminal shows, and what it shows of a crash.

Everything is logged by mmengine's logger. The log file gets all records; the terminal gets the progress and results
that mmengine's and this package's hooks log, and warnings. `sys.stdout` and `sys.stderr` stay as they are, so what a
user's code prints reaches the terminal.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

import torch
from mmengine.logging import MMLogger

_SHOWN = (
    'mmengine/hooks/logger_hook.py',
    'mmengine/hooks/checkpoint_hook.py',
    'swinv2_mm/engine/',
    'swinv2_mm/apis/',
)
"""Ends of the paths of the sources whose records the terminal shows below the level of a warning."""
_HARMLESS = (
    'Exp name: ',  # of each epoch
    'The prefix is not set in metric class',
    'is not a meta file, simply parsed as meta information',
    'Failed to search registry with scope',
    'Reach the end of the dataloader',  # a short run
    'Fast sampler-level resume is unavailable',
    'deprecated',  # for the libraries' authors
    'The model and loaded state dict do not match exactly',  # see `CheckpointMatchHook`
    'Line NMS is not compiled',
)
"""Parts of records that the terminal does not show."""
_HARMLESS_WARNINGS = (
    'Fail to import ``MultiScaleDeformableAttention``',
    'faster_coco_eval is not installed',
    'The draw is False',
    'Default ``avg_non_ignore`` is False',
    '`reduce_zero_label` will be deprecated',
    '.*has been created, the method `get_instance` should not accept any other',
    'Warning: The (bbox|polygon) is out of bounds',
    'The shape of value will convert',
    r'Detected call of `scheduler\.step\(\)` before',  # steps that accumulate gradients
    '.*until `init_sync_buffers` is available',
)
"""Beginnings of Python warnings of the libraries that their default settings cause."""
_early: MemoryHandler | None = None


def say(text: str) -> None:
    """Log `text` and show it on the terminal of the first process."""
    MMLogger.get_current_instance().info(text)


def warn(text: str) -> None:
    """Log `text` as a warning."""
    MMLogger.get_current_instance().warning(text)


def log_only(text: str) -> str | None:
    """Write `text` to the log file and not to the terminal; return the file, or None if this process has none."""
    logger = MMLogger.get_current_instance()
    logger.info(text, extra={'log_only': True})
    return log_file(logger)


def log_file(logger: logging.Logger | None = None) -> str | None:
    """Return the path of the current log file, or None if this process has none."""
    handlers = (logger or MMLogger.get_current_instance()).handlers
    return next(
        (item.baseFilename for item in handlers if isinstance(item, logging.FileHandler)), None
    )


def start_logging(rank: int) -> None:
    """Create the logger of what comes before the Runner; only that of the first process shows more than errors."""
    global _early
    logger = MMLogger.get_instance(f'before_runner_{time.monotonic_ns()}')
    _show_less(logger)
    if rank:
        logger.handlers[0].setLevel(logging.ERROR)
    _early = MemoryHandler(capacity=1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    logger.handlers.append(_early)
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings('ignore', message)


def continue_logging(logger: MMLogger) -> None:
    """Use the logger of a Runner from now on, and write the earlier records to its file."""
    global _early
    _show_less(logger)
    files = [item for item in logger.handlers if isinstance(item, logging.FileHandler)]
    for file in files:
        file.handleError = functools.partial(_stop_file, logger, file)  # type: ignore[method-assign]
    if _early is not None and files:
        _early.setTarget(files[0])
        _early.flush()
    _early = None


def _stop_file(logger: logging.Logger, file: logging.FileHandler, record: object) -> None:
    """Go on without a log file that cannot be written."""
    logger.handlers.remove(file)
    reason = getattr(sys.exc_info()[1], 'strerror', None) or sys.exc_info()[1]
    logger.warning(
        f'the log file {file.baseFilename} cannot be written ({reason}): the run goes on without it'
    )


def _show_less(logger: MMLogger) -> None:
    """Make the terminal's handlers of a logger leave out what a user need not see."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether the terminal shows a record."""
    if getattr(record, 'log_only', False):
        return False
    if record.levelno < logging.WARNING and not any(end in record.pathname for end in _SHOWN):
        return False
    text = record.getMessage()
    return not any(harmless in text for harmless in _HARMLESS)


def fail(text: str, rank: int) -> None:
    """Write `text` to the terminal's error stream, whichever process this is, and to the log file."""
    log_only(text)
    print(f'[rank {rank}] {text}' if rank else text, file=sys.stderr, flush=True)


def import_library(name: str) -> None:
    """Import a library of OpenMMLab without its messages about optional packages."""
    with quiet():
        importlib.import_module(name)
        importlib.import_module(f'{name}.utils').register_all_modules(init_default_scope=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries print, log and warn of about their own work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


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
    'selected index k out of range': 'fewer positions than queries: larger images, or a smaller model.num_queries',
    'divisible by num_groups': 'choose a norm_cfg.num_groups that divides the number of channels',
}
"""Regular expressions for kind and message of an error, and what to do."""


_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def find_outside_cause(error: BaseException) -> str | None:
    """Return a sentence about an error that comes from the file system or the config and not from the program."""
    log = log_file()
    if log and (not Path(log).is_file() or _lost_folder(error, Path(log).parent)):
        return f'The work directory {Path(log).parents[1]} was removed or unmounted during the run.'
    if any('No usable temporary directory' in str(cause) for cause in _causes(error)):
        return 'No folder for temporary files can be written to: set TMPDIR to one.'
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return (
            f'{error.filename or "A file"} cannot be written ({error.strerror}); earlier checkpoints are unchanged: '
            'free space, then continue with --resume.'
        )
    if _has_wrong_key(error):
        return f'The config has a wrong key: {message_of(error)}. {_wrong_key_remedy(error)}'
    return None


def _wrong_key_remedy(error: BaseException) -> str:
    if "'pretrained'" in str(error):
        return (
            'MMSegmentation passes model.pretrained to the backbone: set model.pretrained=None, and name weights of '
            "SwinV2 in backbone.init_cfg=dict(type='Pretrained', checkpoint=...)."
        )
    for frame, _ in traceback.walk_tb(error.__traceback__):
        steps = frame.f_locals.get('transforms')
        if isinstance(steps, (list, tuple)) and all(isinstance(one, dict) for one in steps):
            named = ', '.join(f'{place} {step.get("type")}' for place, step in enumerate(steps))
            return f'The transforms of its pipeline, as in ...dataset.pipeline.0, are {named}.'
    return (
        'A config keeps the keys of the dict that it inherits: _delete_=True replaces it, as in '
        "backbone=dict(_delete_=True, type='swinv2_mm.SwinTransformerV2')."
    )


def _has_wrong_key(error: BaseException) -> bool:
    """Return whether mmengine has passed a class an argument from the config that it does not take."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or found is None:
        return False
    return any(
        'mmengine' in Path(frame.f_code.co_filename).parts
        and any(isinstance(value, dict) and found[1] in value for value in frame.f_locals.values())
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


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
    lines = [f'{type(error).__name__}: {message_of(error)}', f'  at {_place(error)}']
    if hint := find_hint(error):
        lines.append(f'  hint: {hint}')
    if log:
        lines.append(f'  full traceback: {log}')
    for line in lines:
        fail(line, rank)


def was_interrupted(error: BaseException) -> bool:
    """Return whether an error goes back to Ctrl-C."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it goes back to.

    Libraries catch every exception in some places and raise another: mmengine reports a config that it was writing as
    a signal came as a syntax error, and its clean-up of a config hides that there is no folder for temporary files.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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


def message_of(error: BaseException) -> str:
    """Return the message in one line, else the line of code; of a data loading process, the original message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        frames = traceback.extract_tb(error.__traceback__)
        return (frames[-1].line if frames else None) or 'no message'
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
