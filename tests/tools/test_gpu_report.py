"""The GPU report on a CPU: that it runs as a whole, ends in time, and shows what it wrote."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tool_runs import ROOT

from benchmarks.gpu import report
from benchmarks.gpu.report import BEGIN, END, show_tables
from benchmarks.results import Results, read_results

TOOL = ROOT / 'tools/gpu_report.py'
UNMEASURED = 'Not measured yet.'


def results(rows, failed=(), quick=False, command='make'):
    machine = {'cpu': 'C', 'cpu_capability': 'AVX2', 'cores': 2, 'threads': 2, 'gpu': 'Card'}
    machine['ram_gb'] = 4.0
    settings = {'device': 'cuda', 'quick': quick}
    versions = {'torch': '2.11'}
    header = {'machine': machine, 'settings': settings, 'versions': versions, 'date': '2026-01-01'}
    header['command'] = command
    return json.dumps({'header': header, 'rows': rows, 'failed': list(failed), 'finished': True})


@pytest.fixture(scope='module')
def start(environment):
    """Returns a function that runs a Python program and returns the finished process."""

    def run(*command, timeout=120):
        return subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def begin(environment, tmp_path):
    """Returns a function that starts a report of tiny sizes on the CPU and returns its process."""

    def run(*options):
        return subprocess.Popen(
            [sys.executable, TOOL, '--device', 'cpu', '--quick', *map(str, options)],
            env={**environment, 'TMPDIR': str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope='module')
def measured(start, tmp_path_factory):
    """The folder of a report of all parts."""
    out = tmp_path_factory.mktemp('gpu')
    options = ('--device', 'cpu', '--quick', '--minutes', '6', '--out', out)
    done = start(TOOL, *options, timeout=420)
    log = (out / 'log.txt').read_text()
    assert done.returncode == 0, done.stderr + log[-3000:]
    return out, done


def rows_of(folder, part):
    return read_results(folder / f'{part}.json')['rows']


@pytest.mark.long
@pytest.mark.parametrize('part', report.PARTS)
def test_every_part_is_measured_to_its_end(measured, part):
    results = read_results(measured[0] / f'{part}.json')
    assert results['finished'] is True
    assert results['failed'] == []
    assert results['rows']
    assert results['header']['settings'] == {'device': 'cpu', 'quick': True}
    assert results['header']['command'].startswith('python tools/gpu_report.py --device cpu')


@pytest.mark.long
def test_the_report_shows_every_part_and_is_small(measured):
    folder, done = measured
    assert len(list(folder.iterdir())) <= 8
    text = (folder / 'report.md').read_text()
    assert done.stdout.strip() == text.strip()
    sections = text.split('\n### ')
    assert len(sections) == len(report.PARTS)
    assert all('| --- |' in section for section in sections)
    assert UNMEASURED not in text
    assert 'python tools/gpu_report.py --device cpu --quick' in text


@pytest.mark.long
def test_the_tests_of_the_kernels_pass(measured):
    assert {row['outcome'] for row in rows_of(measured[0], 'tests')} == {'passed'}


@pytest.mark.long
def test_attention_kernels_are_compared_with_the_reference(measured):
    for row in rows_of(measured[0], 'kernels'):
        assert set(row['ms']) - {'flex'} == {'ours', 'sdpa', 'reference'}
        assert row['share_of_floor'] == pytest.approx(row['floor_ms'] / row['ms']['ours'])
        assert row['op'] == 'forward + backward' or max(row['differences'].values()) < 0.02


@pytest.mark.long
def test_backbones_of_several_processes_compute_the_same(measured):
    rows = rows_of(measured[0], 'backbones')
    assert [row['mode'] for row in rows] == ['eval', 'train']
    for row in rows:
        assert set(row['ms']) == {'ours', 'timm', 'torchvision'}
    # In bf16; torchvision pads where the others shrink the window.
    assert 0 < rows[0]['differences']['timm'] < 0.1


@pytest.mark.long
def test_detectors_are_compared_in_training_and_inference(measured):
    rows = rows_of(measured[0], 'detectors')
    found = [(row['task'], row['mode']) for row in rows]
    assert found == [(t, m) for t in ('mask_rcnn', 'upernet') for m in ('eval', 'train')]
    for row in rows:
        assert set(row['ms']) == {'ours', 'mmpretrain', 'swin_v1'}
        assert all(ms > 0 for ms in row['ms'].values())
        assert row['fastest_peer'] in ('mmpretrain', 'swin_v1')
        if row['mode'] == 'train':
            assert all(loss > 0 for loss in row['losses'].values())
    parts = {'backbone', 'neck', 'rpn_head', 'roi_head', 'boxes', 'masks'}
    assert set(rows[0]['parts_ms']) == parts
    assert rows[0]['detections'] > 0  # there was something to process
    assert set(rows[2]['parts_ms']) == {'backbone', 'decode_head'}


@pytest.mark.long
def test_the_training_ends_with_a_metric(measured):
    (row,) = rows_of(measured[0], 'training')
    assert 0 <= row['metrics']['mIoU'] <= 100
    assert row['images_per_s'] > 0


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_a_part_that_is_cut_off_is_named(begin, tmp_path):
    process = begin('--parts', 'detectors', '--minutes', '0.04', '--out', tmp_path)
    for worker in wait_for_descendants(process, 1):
        os.kill(worker, signal.SIGSTOP)  # it never ends, however fast the machine is
    output, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    results = read_results(tmp_path / 'detectors.json')
    assert results['finished'] is False
    assert 'cut off after 2 s' in results['failed'][-1]['why']
    assert '- detectors: cut off after 2 s' in output


def test_what_was_measured_before_the_end_is_kept(tmp_path):
    path = tmp_path / 'kernels.json'
    measured = Results(None, path)
    measured.add({'op': 'forward'})
    report.note(path, 'kernels', 'cut off after 3 s')
    content = read_results(path)
    assert content['rows'] == [{'op': 'forward'}]
    assert content['failed'] == [{'what': 'kernels', 'why': 'cut off after 3 s'}]
    assert content['finished'] is False


def test_numbers_that_are_not_finite_stop_nothing(tmp_path):
    measured = Results(None, tmp_path / 'kernels.json')
    measured.add({'ms': {'ours': float('nan')}, 'all': [1.0, float('inf')]})
    measured.add({'ms': {'ours': 1.0}})
    rows = read_results(tmp_path / 'kernels.json')['rows']
    assert rows == [{'ms': {'ours': None}, 'all': [1.0, None]}, {'ms': {'ours': 1.0}}]


def test_a_broken_file_is_named_and_stops_nothing(tmp_path):
    (tmp_path / 'training.json').write_text('{"hea')
    (tmp_path / 'kernels.json').write_text(results([]))
    text = report.write_tables(tmp_path)
    assert '- training: ' in text and 'is not a json file' in text and 'Card' in text
    report.note(tmp_path / 'training.json', 'training', 'cut off')
    assert read_results(tmp_path / 'training.json')['failed'][0]['why'] == 'cut off'


WRONG = [
    {'header': None, 'rows': [{'op': 'forward'}], 'failed': []},
    {'header': None, 'rows': [3], 'failed': []},
    {'header': None, 'rows': {'ms': 1}, 'failed': []},
    {'header': None, 'rows': [], 'failed': ['why']},
    {'header': {'machine': {}}, 'rows': [], 'failed': []},
    {'header': 'text', 'rows': [], 'failed': []},
    {'rows': []},
    [],
]


@pytest.mark.parametrize('part', report.PARTS)
@pytest.mark.parametrize('content', WRONG)
def test_json_of_another_shape_is_named(tmp_path, part, content):
    (tmp_path / f'{part}.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'^{part}: .*{part}.json (is not|has results)') as raised:
        show_tables(tmp_path, None)
    assert len(str(raised.value).splitlines()) == 1
    assert f'{part}.json' in report.write_tables(tmp_path)


def test_no_test_begins_when_time_is_up(start, tmp_path):
    path = tmp_path / 'tests.json'
    script = (
        'import os, time; os.environ["TRITON_INTERPRET"] = "1"\n'
        'from pathlib import Path; from benchmarks.gpu import part, tests\n'
        f'results = part.Results(None, Path({str(path)!r}))\n'
        'tests.run(part.PartOptions("cpu", True, time.monotonic() + 1), results)'
    )
    done = start('-c', script)
    assert done.returncode == 0, done.stdout + done.stderr
    content = read_results(path)
    assert content['rows'] == []
    assert 'out of time after 0 of 4 tests' in content['failed'][0]['why']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(start, tmp_path):
    done = start(TOOL, '--out', tmp_path / 'new')
    assert done.returncode == 2
    assert 'torch sees no GPU' in done.stderr
    assert not (tmp_path / 'new').exists()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_an_interrupted_report_leaves_tables_and_no_processes(begin, tmp_path):
    """The part that compiles before its turn, and its processes, are ended as well."""
    process = begin('--parts', 'tests', 'backbones', '--out', tmp_path)
    descendants = wait_for_descendants(process, 3)  # two parts, and a contestant of the second
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert 'interrupted: what was measured so far' in error
    assert 'Traceback' not in error
    assert '### Backbones' in (tmp_path / 'report.md').read_text()
    time.sleep(1)
    assert not [pid for pid in descendants if Path(f'/proc/{pid}').exists()]
    assert not list(tmp_path.glob('swinv2_mm_*'))


def wait_for_descendants(process, count):
    deadline = time.monotonic() + 120
    while len(descendants := descendants_of(process.pid)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(descendants) >= count
    return descendants


def descendants_of(pid):
    """Processes that it started, and those that they started."""
    parents = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(')')[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(minutes=0.0), '--minutes 0: expected more than 0'),
        (dict(device='mps'), '--device mps: the report is about NVIDIA GPUs'),
        (dict(device='gpu'), '--device gpu: expected cuda'),
        (dict(minutes=float('nan')), 'expected more than 0'),
        (dict(quick=False), '--device cpu only tests the report itself: add --quick'),
        (dict(out='file'), 'cannot write into'),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, message):
    (tmp_path / 'file').write_text('')
    given = dict(parts=['tests'], minutes=1.0, out='new', device='cpu', quick=True) | options
    given['out'] = tmp_path / given['out']
    with pytest.raises((ValueError, OSError), match=message):
        report.run_report(argparse.Namespace(**given))


def test_missing_packages_are_named(environment):
    script = (
        'import importlib.util as u; found = u.find_spec\n'
        'u.find_spec = lambda name, *rest: None if name in ("cv2", "scipy") else found(name, *rest)\n'
        f'import runpy; runpy.run_path({str(TOOL)!r}, run_name="__main__")'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert 'lacks cv2, scipy' in done.stderr and 'docs/gpu.md' in done.stderr


def test_the_page_of_benchmarks_has_a_place_for_the_tables():
    text = (ROOT / 'docs/benchmarks.md').read_text()
    assert text.count(BEGIN) == text.count(END) == 1
