"""What a run logs, and how much of it the terminal shows.

Everything is logged by mmengine's logger. The log file gets all records; the terminal gets the progress and results
that mmengine's and this package's hooks log, and warnings. `sys.stdout` and `sys.stderr` stay as they are, so what a
user's code prints reaches the terminal.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import sys
import time
import warnings
from logging.handlers import MemoryHandler

from mmengine.logging import MMLogger

_SHOWN = ('mmengine/hooks/logger_hook.py', 'mmengine/hooks/checkpoint_hook.py', 'swinv2_mm/engine/')
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
    """Write `text` to the log file and not to the terminal.

    Returns:
        The log file, or None if this process has none.
    """
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
    """Create the logger of what comes before the Runner; `continue_logging` moves its records to the log file.

    Args:
        rank: Number of this process; only the first one shows more than errors.
    """
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
    """Import a library of OpenMMLab without its messages about optional packages.

    Raises:
        Exception: Whatever the library raises.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        importlib.import_module(name)
        importlib.import_module(f'{name}.utils').register_all_modules(init_default_scope=False)
