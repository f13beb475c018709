"""Part `tests`: the tests marked `gpu`; on a CPU some kernel tests in Triton's interpreter."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest

from benchmarks.gpu.part import PartOptions
from benchmarks.processes import ROOT
from benchmarks.results import Results

_LONGEST = 120  # seconds for all tests
_RESERVE = 10  # seconds for the test that runs at the time limit
_MESSAGE = 400
_MARK = re.compile(r'\bmark\.gpu\b')
_INTERPRETED = [
    'tests/ops/window_attention/test_triton.py',
    *('-k', 'windows_of_one_token or only_the_gradients_asked_for or an_empty_batch or size6'),
]


def run(options: PartOptions, results: Results) -> None:
    """Run the tests, with a row for each."""
    tests = ['-m', 'gpu', *_marked_files()] if options.is_cuda else _INTERPRETED
    plugin = TestRows(results, time.monotonic() + min(options.left, _LONGEST) - _RESERVE)
    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'  # ignore other installed plugins
    os.chdir(ROOT)
    arguments = ['-c', str(ROOT / 'pyproject.toml'), '--rootdir', str(ROOT), '-q', '--tb=short']
    arguments += ['-p', 'no:cacheprovider', '--continue-on-collection-errors']
    code = pytest.main([*arguments, *tests], plugins=[plugin])
    if plugin.stopped:
        results.fail('tests', f'out of time after {len(plugin.done)} of {plugin.collected} tests')
    elif code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not plugin.broken:
        results.fail('tests', f'pytest ended with exit code {int(code)}: see the log')


def _marked_files() -> list[str]:
    """Return the files with tests marked `gpu`, since collecting all files takes long."""
    files = sorted((ROOT / 'tests').rglob('test_*.py'))
    found = [file for file in files if _MARK.search(file.read_text(encoding='utf-8'))]
    if not found:
        raise FileNotFoundError(f'no tests marked gpu in {ROOT / "tests"}: run from a checkout')
    return [str(file.relative_to(ROOT)) for file in found]


class TestRows:
    """A pytest plugin that adds a row for each test; no test starts after `deadline` (`time.monotonic`)."""

    __test__ = False  # not a test class

    def __init__(self, results: Results, deadline: float) -> None:
        self.results, self.deadline = results, deadline
        self.collected, self.broken, self.stopped = 0, False, False
        self.done: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Add a row for a file that cannot be collected."""
        if report.failed:
            self.broken = True
            self._add(report, f'not collected: {report.longreprtext[-_MESSAGE:]}')

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run kernel tests first, and slow compilations last."""
        items.sort(key=lambda item: ('inductor' in item.name, 'tests/ops' not in item.nodeid))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Store the number of tests."""
        self.collected = len(session.items)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Skip the test and stop after the time limit."""
        if time.monotonic() < self.deadline:
            return None
        self.stopped = True
        item.session.shouldstop = 'time is up'
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a row for a test, or for an error in its setup or teardown."""
        self.done.add(report.nodeid)
        if report.when == 'call' or not report.passed:
            crash = getattr(report.longrepr, 'reprcrash', None)
            text = crash.message[:_MESSAGE] if crash else report.longreprtext[-_MESSAGE:]
            if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
                text = report.longrepr[2]
            self._add(report, text)

    def _add(self, report: Any, message: str) -> None:
        seconds = round(getattr(report, 'duration', 0.0), 3)
        row = {'test': report.nodeid, 'outcome': report.outcome, 'seconds': seconds}
        self.results.add({**row, 'message': message} if message else row)
