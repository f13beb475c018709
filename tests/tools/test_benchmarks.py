"""The benchmarks, as a user runs them, on cases so small that their figures mean nothing."""

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
from tool_runs import ROOT

from swinv2_mm.benchmarks.cases import Case, needs_padding, parse_size
from swinv2_mm.benchmarks.contestants import products
from swinv2_mm.benchmarks.processes import ContestantError, Pool
from swinv2_mm.benchmarks.results import read_results
from swinv2_mm.benchmarks.roofline import count_flops
from swinv2_mm.benchmarks.summary import pairwise_ratio

BACKBONE = ROOT / 'tools/analysis_tools/benchmark_backbone.py'
TRAINING = ROOT / 'tools/analysis_tools/benchmark_training.py'
# Our own environment may have it; usually it lives in a folder that this test does not name.
ABSENT = [] if importlib.util.find_spec('mmpretrain') else ['mmpretrain']
SMALL = ('--arch', 'nano', '--window', '4', '--min-time', '0.01', '--threads', '1')


def read(path):
    return json.loads(path.read_text())


def assert_ratios_are_of_the_samples(row):
    samples = row['samples_ms']
    assert row['ratios']
    for name, ratio in row['ratios'].items():
        assert len(samples[name]) == len(samples['ours']) == row['rounds']
        pairs = [theirs / ours for theirs, ours in zip(samples[name], samples['ours'])]
        assert ratio == pytest.approx(statistics.median(pairs))
        assert row['peers_ms'][name] == pytest.approx(statistics.median(samples[name]))
    assert row['ratio_to_fastest'] == min(row['ratios'].values())
    assert row['ratios'][row['fastest_peer']] == row['ratio_to_fastest']


@pytest.fixture(scope='module')
def compared(run_tool, tmp_path_factory):
    """timm runs, transformers is broken, mmpretrain is not installed."""
    folder = tmp_path_factory.mktemp('benchmark')
    broken = folder / 'peers/transformers/transformers'
    broken.mkdir(parents=True)
    (broken / '__init__.py').write_text("raise ImportError('half an installation')\n")
    done = run_tool(
        BACKBONE,
        *SMALL,
        *('--peers', 'timm', 'hf', *ABSENT, '--input', '64x128', '--mode', 'eval', 'train'),
        *('--backends', 'auto', 'reference', 'sequential', '--rounds', '3'),
        *('--json', folder / 'a.json', '--markdown', folder / 'a.md', '--plot', folder / 'a.png'),
        env=dict(SWINV2_MM_PEERS=str(folder / 'peers')),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_row_for_every_case_and_backend(compared):
    results = read(compared[0] / 'a.json')
    rows = results['rows']
    cases = [(row['mode'], row['backend']) for row in rows]
    assert cases == [(m, b) for m in ('eval', 'train') for b in ('auto', 'reference', 'sequential')]
    for row in rows:
        assert (row['input'], row['window'], row['rounds']) == ('64x128', 4, 3)
        assert row['ours_ms'] > 0
        assert list(row['peers_ms']) == ['timm']
        assert row['shared_weights'] == {'timm': True}
        assert 0 < row['roofline'] < 1
        assert set(row['samples_ms']) == {'ours', 'timm', 'matmul', 'mm'}
        low, high = row['ours_quartiles_ms']
        assert low <= row['ours_ms'] <= high
        assert_ratios_are_of_the_samples(row)
    for row in rows[3:]:  # in training, activations are far more than a page or two
        assert row['ours_peak_mb'] > 1
        assert row['peers_peak_mb']['timm'] > 1


def test_the_roofline_is_flops_over_the_rate_of_the_product(compared):
    for row in read(compared[0] / 'a.json')['rows']:
        flops = count_flops(Case((64, 128), 4, row['mode'], 'nano'))
        assert row['gflops'] * 1e9 == pytest.approx(flops)
        samples = row['samples_ms']
        for name, field in (('matmul', 'roofline'), ('mm', 'share_of_mm')):
            ideal = [row['gflops'] / (2 * 2048**3 / 1e9 / ms) for ms in samples[name]]
            shares = [best / ours for best, ours in zip(ideal, samples['ours'])]
            assert row[field] == pytest.approx(statistics.median(shares))


def test_the_peers_compute_the_same(compared):
    row = read(compared[0] / 'a.json')['rows'][0]
    # At window 4 the last map is 2 x 4, to which both shrink the window; the others are multiples of it.
    assert row['max_relative_difference']['timm'] < 1e-4
    assert row['padded'] is True


def test_who_cannot_run_is_named_and_the_others_go_on(compared):
    folder, done = compared
    results = read(folder / 'a.json')
    for row in results['rows']:
        assert row['failed'] == {'hf': 'ImportError: half an installation'}
    assert 'half an installation' in done.stderr
    if ABSENT:
        assert 'pip install' in results['header']['absent']['mmpretrain']
        assert 'mmpretrain is not installed' in done.stderr
        assert 'mmpretrain is not installed' in (folder / 'a.md').read_text()


def test_the_header_says_on_what_it_ran(compared):
    header = read(compared[0] / 'a.json')['header']
    assert '--backends auto reference sequential' in header['command']
    assert header['machine']['threads'] == 1
    assert header['machine']['cores'] == os.cpu_count()
    assert {'torch', 'timm', 'swinv2_mm'} <= set(header['versions'])


def test_tables_and_figure_can_be_made_again(compared, run_tool, tmp_path):
    folder, done = compared
    text = (folder / 'a.md').read_text()
    assert done.stdout.strip() == text.strip()
    assert '| 64x128 | 4 | train | reference |' in text
    assert (folder / 'a.png').stat().st_size > 10_000
    again = run_tool(
        BACKBONE,
        *('--from-json', folder / 'a.json'),
        *('--markdown', tmp_path / 'b.md', '--plot', tmp_path / 'b.svg'),
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / 'b.md').read_text() == text
    assert 'timm' in (tmp_path / 'b.svg').read_text()


def test_sweeps_say_how_cost_grows(run_tool, tmp_path):
    done = run_tool(
        BACKBONE,
        *SMALL,
        *('--peers', '--sweep-resolution', '96', '64', '--sweep-window', '4', '8'),
        *('--sweep-at-window', '4', '--sweep-at-input', '64x64', '--rounds', '2'),
        *('--json', tmp_path / 'a.json', '--plot', tmp_path / 'a.png'),
    )
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / 'a.json')['rows']
    found = [(row['sweep'], row['input'], row['window']) for row in rows]
    assert found == [
        ('resolution', '64x64', 4),
        ('resolution', '96x96', 4),
        ('window', '64x64', 4),
        ('window', '64x64', 8),
    ]
    assert rows[0]['time_factor'] is rows[2]['time_factor'] is None
    for before, row in ((rows[0], rows[1]), (rows[2], rows[3])):
        pairs = zip(row['samples_ms']['ours'], before['samples_ms']['ours'])
        assert row['time_factor'] == pytest.approx(statistics.median(a / b for a, b in pairs))
    assert 'Growth with resolution' in done.stdout
    assert (tmp_path / 'a.png').exists()


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (('--json', 'nowhere/a.json'), 'the folder nowhere does not exist'),
        (('--rounds', '0'), '--rounds 0: expected at least 1'),
    ],
)
def test_a_wrong_option_is_said_in_a_line(options, expected, run_tool):
    done = run_tool(BACKBONE, *options)
    assert done.returncode == 2
    assert expected in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_file_without_results_is_said_to_be_none(tmp_path):
    for text, expected in (('no json', 'is no json file'), ('[1]', 'holds no results')):
        (tmp_path / 'a.json').write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_results(tmp_path / 'a.json')


def children_of(pid):
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.skipif(shutil.which('ps') is None, reason='needs ps')
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_process_outlives_the_benchmark(number, code, environment, tmp_path):
    command = [sys.executable, str(BACKBONE), *SMALL, '--peers', 'timm', '--input', '64x64']
    command += ['--rounds', '100000', '--json', str(tmp_path / 'a.json')]
    main = subprocess.Popen(
        command,
        env={**environment, 'TMPDIR': str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in main.stderr:
            if 'round 2' in line:
                break
        workers = children_of(main.pid)
        assert len(workers) == 4  # ours, timm, two matrix products
        main.send_signal(number)
        main.communicate(timeout=180)
    finally:
        main.kill()
    assert main.returncode == code
    left = list(tmp_path.glob('swinv2_mm_benchmark_*'))
    assert len(left) == (number == signal.SIGKILL)
    wait_for(lambda: not any(is_running(pid) for pid in workers), 30)


def test_a_process_that_dies_is_reported_and_started_again():
    with Pool(threads=1, device='cpu', timeout=60) as pool:
        worker = pool.worker(products()[0])
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ContestantError, match='signal 9'):
            worker.ask('touch', key='nothing')
        assert not worker.is_alive
        again = pool.worker(products()[0])
        assert again is not worker
        with pytest.raises(ContestantError, match='KeyError'):
            again.ask('touch', key='nothing')
        assert again.is_alive


def test_a_training_step_beside_swin_v1(run_tool, tmp_path):
    done = run_tool(
        TRAINING,
        *SMALL,
        *('--task', 'upernet', '--peers', 'swin_v1', '--input', '64x64', '--rounds', '2'),
        *('--json', tmp_path / 'a.json', '--markdown', tmp_path / 'a.md'),
        *('--plot', tmp_path / 'a.png'),
    )
    assert done.returncode == 0, done.stderr
    (row,) = read(tmp_path / 'a.json')['rows']
    assert (row['task'], row['batch'], row['rounds']) == ('upernet', 2, 2)
    assert row['failed'] == {}
    assert row['ours_images_per_s'] == pytest.approx(2000 / row['ours_ms'])
    assert row['peers_images_per_s']['swin_v1'] == pytest.approx(2000 / row['peers_ms']['swin_v1'])
    assert row['shared_weights'] == {'swin_v1': False}
    assert min(row['losses'].values()) > 1
    assert_ratios_are_of_the_samples(row)
    assert 'images/s' in (tmp_path / 'a.md').read_text()
    assert (tmp_path / 'a.png').exists()


def test_a_training_step_of_a_detector(run_tool, tmp_path):
    done = run_tool(
        TRAINING,
        *SMALL,
        *('--task', 'mask_rcnn', '--peers', '--input', '64x64', '--rounds', '1'),
        *('--batch', '1', '--json', tmp_path / 'a.json'),
    )
    assert done.returncode == 0, done.stderr
    (row,) = read(tmp_path / 'a.json')['rows']
    assert row['failed'] == {}
    assert row['ours_images_per_s'] > 0
    assert row['losses']['ours:auto'] > 1
    assert row['ratio_to_fastest'] is None


def test_ratios_pair_what_was_measured_together():
    # The machine was three times slower in the second round; the ratio of medians would be 1.
    assert pairwise_ratio([2.0, 6.0, 2.0], [1.0, 3.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match='2 and 1 samples'):
        pairwise_ratio([1.0, 2.0], [1.0])


def test_sizes_and_padding():
    assert parse_size('800x1344') == (800, 1344)
    assert parse_size('512') == (512, 512)
    with pytest.raises(ValueError, match="'64by64' is no size"):
        parse_size('64by64')
    assert not needs_padding(Case((512, 512), 16, 'eval'))
    assert needs_padding(Case((800, 1344), 8, 'eval'))
