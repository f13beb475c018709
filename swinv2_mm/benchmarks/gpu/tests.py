"""The tests marked `gpu`; on a CPU a few of the kernels' tests, in Triton's interpreter."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from swinv2_mm.benchmarks.gpu.part import PartOptions, Sink

ROOT = Path(__file__).resolve().parents[3]
_LONGEST = 120  # seconds for all tests
_RESERVE = 10  # seconds for the test that runs when time is up
_MESSAGE = 400
_MARK = re.compile(r'\bmark\.gpu\b')
_INTERPRETED = (
    'tests/ops/window_attention/test_triton.py',
    *('-k', 'windows_of_one_token or only_the_gradients_asked_for or an_empty_batch or size6'),
)


def run(options: PartOptions, sink: Sink) -> None:
    """Run the tests, with a row for each."""
    if not options.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        # Triton looks at it at its import, and it is imported: start this process anew.
        os.environ['TRITON_INTERPRET'] = '1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    tests = ['-m', 'gpu', *_marked_files()] if options.is_cuda else list(_INTERPRETED)
    plugin = TestRows(sink, time.monotonic() + min(options.left, _LONGEST) - _RESERVE)
    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'  # what else is installed has no say
    os.chdir(ROOT)
    code = pytest.main(_arguments(tests), plugins=[plugin])
    if plugin.stopped:
        sink.fail('tests', f'out of time after {len(plugin.done)} of {plugin.collected} tests')
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not plugin.broken:
        sink.fail('tests', f'pytest ended with exit code {int(code)}: see the log')


def _marked_files() -> list[str]:
    """The files with tests marked `gpu`: to collect all others takes long."""
    files = sorted((ROOT / 'tests').rglob('test_*.py'))
    found = [file for file in files if _MARK.search(file.read_text(encoding='utf-8'))]
    if not found:
        raise FileNotFoundError(f'no tests marked gpu in {ROOT / "tests"}: run from a checkout')
    return [str(file.relative_to(ROOT)) for file in found]


def _arguments(tests: Sequence[str]) -> list[str]:
    return [
        *('-c', str(ROOT / 'pyproject.toml'), '--rootdir', str(ROOT)),
        *('-q', '--tb=short', '-p', 'no:cacheprovider', '--continue-on-collection-errors'),
        *tests,
    ]


class TestRows:
    """A plugin of pytest that writes a row for each test, and stops when time is up.

    Args:
        sink: Where rows go.
        deadline: When no further test begins, by `time.monotonic`.

    Attributes:
        collected: Number of tests to run.
        done: Names of the tests that ran.
        broken: Number of files that could not be collected.
        stopped: Whether time was up before all tests ran.
    """

    __test__ = False  # no test, for pytest

    def __init__(self, sink: Sink, deadline: float) -> None:
        self.sink, self.deadline = sink, deadline
        self.collected, self.broken = 0, 0
        self.done: set[str] = set()
        self.stopped = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Add a row for a file that cannot be collected."""
        if report.failed:
            self.broken += 1
            self._add(
                report.nodeid, 'failed', 0.0, f'not collected: {report.longreprtext[-_MESSAGE:]}'
            )

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the kernels first, and what torch's compiler takes long for last."""
        items.sort(key=lambda item: ('inductor' in item.name, 'tests/ops' not in item.nodeid))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note how many tests there are."""
        self.collected = len(session.items)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Leave a test out and stop if time is up."""
        if time.monotonic() < self.deadline:
            return None
        self.stopped = True
        item.session.shouldstop = 'time is up'
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a row for a test that ran, or could not begin or end."""
        self.done.add(report.nodeid)
        if report.when == 'call' or not report.passed:
            self._add(report.nodeid, report.outcome, report.duration, _message(report))

    def _add(self, test: str, outcome: str, seconds: float, message: str) -> None:
        row = {'test': test, 'outcome': outcome, 'seconds': round(seconds, 3)}
        self.sink.add({**row, 'message': message} if message else row)


def _message(report: pytest.TestReport) -> str:
    """Why a test failed or was skipped; empty if it passed."""
    if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, 'reprcrash', None)
    return crash.message[:_MESSAGE] if crash else report.longreprtext[-_MESSAGE:]
