"""The console shows what matters; everything else that is printed goes to the log file.

Libraries print, warn and log at import, while building and while evaluating. While a `Console` is open, `sys.stdout`
and `sys.stderr` are replaced by streams that write to the log file, and only `say`, `warn` and `fail` reach the
terminal.
Nothing is lost: lines that come before the log file exists wait in memory.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

_LONGEST_WARNING = 400
"""Characters of a library's warning that the console shows; some name every key of a checkpoint."""


class Console:
    """Owns the terminal of one process.

    Args:
        speaks: Whether this process talks to the user at all; of several processes only the first should.
        name: Put before failures, e.g. `'rank 1'`, where several processes share a terminal.
    """

    def __init__(self, speaks: bool = True, name: str = '') -> None:
        self.speaks = speaks
        self.name = name
        self.log_path: Path | None = None
        self._waiting: list[str] = []
        self._lock = threading.RLock()
        self.is_closed = False
        self._stdout: TextIO = sys.stdout
        self._stderr: TextIO = sys.stderr

    def __enter__(self) -> Console:
        self._stdout, self._stderr = sys.stdout, sys.stderr
        sys.stdout = _LineStream(self, 'stdout', self._stdout)
        sys.stderr = _LineStream(self, 'stderr', self._stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _LineStream):
                stream.finish_line()
        sys.stdout, sys.stderr = self._stdout, self._stderr
        self.is_closed = True

    def say(self, text: str = '') -> None:
        """Prints `text`, and logs it."""
        self.log(text, 'console')
        if self.speaks:
            print(text, file=self._stdout, flush=True)

    def warn(self, text: str) -> None:
        """Prints `text` as a warning, and logs it in full."""
        self.log(text, 'console')
        self.show_warning(text)

    def show_warning(self, text: str) -> None:
        """Prints the beginning of a warning that is in the log file already."""
        if self.speaks:
            print(f'warning: {_shortened(text)}', file=self._stdout, flush=True)

    def fail(self, text: str) -> None:
        """Prints `text` to the terminal's error stream, whichever process this is, and logs it."""
        self.log(text, 'console')
        prefix = f'[{self.name}] ' if self.name and not self.speaks else ''
        print(prefix + text, file=self._stderr, flush=True)

    def log(self, text: str, source: str) -> None:
        """Writes `text` to the log file only, or keeps it until there is one."""
        stamp = time.strftime('%Y/%m/%d %H:%M:%S')
        lines = ''.join(f'{stamp} - {source} - {line}\n' for line in text.splitlines() or [''])
        with self._lock:
            if self.log_path is None:
                self._waiting.append(lines)
            else:
                self._append(lines)

    def open_log(self, path: str | Path) -> Path:
        """Names the log file; what was kept so far is written to it."""
        with self._lock:
            self.log_path = Path(path)
            self._append(''.join(self._waiting))
            self._waiting.clear()
            return self.log_path

    def ensure_log(self) -> Path:
        """Returns the log file; one in the folder for temporary files if the run did not get as far as its own."""
        if self.log_path is not None:
            return self.log_path
        _, path = tempfile.mkstemp(prefix='swinv2_mm_', suffix='.log')
        return self.open_log(path)

    def _append(self, lines: str) -> None:
        # Opened for each write: data loading workers are forks and write here, too.
        if self.log_path is not None and lines:
            with self.log_path.open('a', encoding='utf-8') as file:
                file.write(lines)


class ConsoleHandler(logging.Handler):
    """Shows a library's warnings and errors on the console, each once, without the ones known to be noise.

    Args:
        console: Where to show them.
    """

    NOISE = (
        # mmseg's hook, told not to draw
        'The draw is False',
        # a validation without a single detection; the line with the metrics says so
        'The testing results of the whole dataset is empty',
        'Since `metrics` is an empty dict',
        'The prefix is not set in metric class',
        'is not a meta file, simply parsed as meta information',
        'Failed to search registry with scope',
        # a short run comes to the end of its data
        'Reach the end of the dataloader',
        'Fast sampler-level resume is unavailable',
        # a library's word to its own authors
        'deprecated',
        # said in other words by the runner
        'The model and loaded state dict do not match exactly',
    )

    def __init__(self, console: Console) -> None:
        super().__init__(level=logging.WARNING)
        self.console = console
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows `record`; it is in the log file already."""
        if self.console.is_closed:  # loggers outlive a run
            return
        text = record.getMessage().strip()
        if text in self._seen or any(noise in text for noise in self.NOISE):
            return
        self._seen.add(text)
        self.console.show_warning(text)


class _LineStream(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr` and hands complete lines to the console's log."""

    encoding = 'utf-8'

    def __init__(self, console: Console, source: str, original: TextIO) -> None:
        self._console = console
        self._source = source
        self._original = original
        self._line = ''

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split('\n')
        for line in lines:
            self._log(line)
        return len(text)

    def finish_line(self) -> None:
        """Logs what was written since the last line break."""
        if self._line:
            self._log(self._line)
            self._line = ''

    def _log(self, line: str) -> None:
        # Of a progress bar that redraws itself, the last state is enough.
        self._console.log(line.rstrip('\r').rsplit('\r', 1)[-1], self._source)

    def fileno(self) -> int:
        # `faulthandler` and child processes need a real file.
        return self._original.fileno()


def _shortened(text: str) -> str:
    """Returns the first lines of `text`."""
    if len(text) <= _LONGEST_WARNING:
        return text
    return f'{text[:_LONGEST_WARNING].rstrip()} ... (in full in the log file)'
