"""Test the tables of the GPU report, and how they get into a page."""

import json

import pytest
from test_gpu_report import (  # noqa: F401  a fixture
    TOOL,
    UNMEASURED,
    results,
    start,
)

from benchmarks.gpu import report
from benchmarks.gpu.report import BEGIN, END, show_tables


def test_tables_go_into_a_page_and_replace_those_there(start, tmp_path):  # noqa: F811
    kernel = {'op': 'forward', 'dtype': 'bf16', 'window': 8, 'map': '64x64', 'batch': 1, 'heads': 3}
    kernel |= {'head_dim': 32, 'ms': {'ours': 0.5, 'flex': None}, 'floor_ms': 0.25}
    kernel |= {'bound': 'bytes', 'share_of_floor': 0.5, 'ratios': {'sdpa': 2.0}}
    kernel['peak_mb'] = {'ours': 20.0}
    profile = {'profile': 'ours', 'case': 'tiny', 'kernels': [['a|b', 1.5, 0.25]]}
    (tmp_path / 'kernels.json').write_text(
        results([kernel], [{'what': 'fp32 window 24', 'why': 'no time was left'}])
    )
    (tmp_path / 'backbones.json').write_text(results([profile]))
    (tmp_path / 'training.json').write_text(results([]))
    page = tmp_path / 'page.md'
    page.write_text(f'before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n')
    done = start(TOOL, '--tables', tmp_path, '--docs', page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith(f'before\n\n{BEGIN}\n') and text.endswith(f'{END}\n\nafter\n')
    assert 'old' not in text
    assert done.stdout.strip() in text
    assert (
        '| forward | bf16 | 8 | 64x64 | 1 | 3 | 32 | 0.500 | - | 20 | 0.250 | bytes | 50 % |'
        in text
    )
    assert '| `a\\|b` | 1.500 | 25 % |' in text
    assert '- kernels: fp32 window 24: no time was left' in text
    assert 'Card' in text and 'torch 2.11' in text
    assert text.count(UNMEASURED) == 3  # tests, detectors, training
    show_tables(tmp_path, page)
    assert page.read_text() == text


def test_a_page_or_folder_that_does_not_fit_is_named(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('no place')
    with pytest.raises(OSError, match='holds no results'):
        show_tables(tmp_path, page)
    (tmp_path / 'kernels.json').write_text(results([]))
    with pytest.raises(ValueError, match='has no place for the tables'):
        show_tables(tmp_path, page)
    with pytest.raises(OSError, match='nowhere does not exist'):
        show_tables(tmp_path / 'nowhere', None)
    assert page.read_text() == 'no place'


def test_figures_of_tiny_sizes_stay_out_of_pages(tmp_path):
    (tmp_path / 'kernels.json').write_text(results([], quick=True))
    page = tmp_path / 'page.md'
    page.write_text(f'{BEGIN}\n{END}\n')
    with pytest.raises(ValueError, match='measured with --quick: its figures mean nothing'):
        show_tables(tmp_path, page)
    assert page.read_text() == f'{BEGIN}\n{END}\n'


def test_parts_of_several_runs_name_their_settings(tmp_path, capsys):
    (tmp_path / 'tests.json').write_text(results([], command='one'))
    (tmp_path / 'kernels.json').write_text(results([], command='one'))
    (tmp_path / 'training.json').write_text(results([], command='other'))
    assert show_tables(tmp_path, None) == 0
    text = capsys.readouterr().out
    assert 'tests, kernels: Card' in text and 'training: Card' in text
    assert '```\none\n```' in text and '```\nother\n```' in text


@pytest.mark.parametrize(
    ('content', 'complete'),
    [
        (dict(rows=[{'outcome': 'passed'}], failed=[], finished=True), True),
        (dict(rows=[{'outcome': 'failed'}], failed=[], finished=True), False),
        (dict(rows=[], failed=[{'what': 'w', 'why': 'y'}], finished=True), False),
        (dict(rows=[], failed=[], finished=False), False),
    ],
)
def test_what_is_missing_or_fails_is_in_the_exit_code(tmp_path, content, complete):
    path = tmp_path / 'tests.json'
    path.write_text(json.dumps({'header': None, **content}))
    assert report.is_complete(path) is complete
    assert not report.is_complete(tmp_path / 'absent.json')
