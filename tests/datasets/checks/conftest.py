"""A tiny generated set and the quickstart configs on it, and what a check finds."""

import pytest
from quickstarts import *  # noqa: F403

from swinv2_mm.datasets.checks import ConfiguredData, check_data


@pytest.fixture
def finds():
    """Return a function that runs checks and returns their findings as text."""

    def run(checks, cfg, parts=('train', 'val', 'test')):
        data = ConfiguredData(cfg, parts)
        checks = checks if isinstance(checks, (list, tuple)) else [checks]
        findings = list(check_data(data, [(check,) for check in checks]))
        for finding in findings:
            assert finding.place and '\n' not in str(finding)
        return [f'{finding.severity}: {finding}' for finding in findings]

    return run
