"""The benchmarks, as a user runs them, on cases so small that their figures mean nothing."""

import importlib.util
import json
import os
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
from tool_runs import ROOT

from benchmarks.cases import Case, parse_size
from benchmarks.contestants import RUNTIMES, products
from benchmarks.processes import ContestantError, Pool
from benchmarks.results import pairwise_ratio, read_results
from benchmarks.roofline import count_flops

BACKBONE = ROOT / 'tools/analysis_tools/benchmark_backbone.py'
MODEL = ROOT / 'tools/analysis_tools/benchmark_model.py'
# Our own environment may have it; usually it lives in a folder that this test does not name.
ABSENT = [] if importlib.util.find_spec('mmpretrain') else ['mmpretrain']
SMALL = ('--arch', 'nano', '--window', '4', '--min-time', '0.01', '--threads', '1')


def read(path):
    return json.loads(path.read_text())


def assert_ratios_are_of_the_samples(row):
    samples, ours = row['samples_ms'], row['samples_ms'][row['ours']]
    assert row['ratios']
    for name, ratio in row['ratios'].items():
        assert len(samples[name]) == len(ours) == row['rounds']
        pairs = [theirs / mine for theirs, mine in zip(samples[name], ours)]
        assert ratio == pytest.approx(statistics.median(pairs))
        assert row['ms'][name] == pytest.approx(statistics.median(samples[name]))
    assert row['ms'][row['ours']] == min(ms for n, ms in row['ms'].items() if n.startswith('ours'))
    assert row['ratio_to_fastest'] == min(row['ratios'].values())
    assert row['ratios'][row['fastest_peer']] == row['ratio_to_fastest']


@pytest.fixture(scope='module')
def compared(run_tool, tmp_path_factory):
    """timm and the runtimes run, transformers is broken, mmpretrain is not installed."""
    folder = tmp_path_factory.mktemp('benchmark')
    broken = folder / 'peers/transformers/transformers'
    broken.mkdir(parents=True)
    (broken / '__init__.py').write_text("raise ImportError('half an installation')\n")
    done = run_tool(
        BACKBONE,
        *SMALL,
        *('--peers', 'timm', 'hf', *ABSENT, *RUNTIMES, '--input', '64x128'),
        *('--mode', 'eval', 'train'),
        *('--backends', 'auto', 'sequential', '--rounds', '2'),
        *('--json', folder / 'a.json', '--markdown', folder / 'a.md', '--plot', folder / 'a.png'),
        env=dict(SWINV2_MM_PEERS=str(folder / 'peers')),
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def call_tool(monkeypatch):
    """Returns a function that runs the benchmark of the backbone in this process and returns its exit code."""
    tool = runpy.run_path(str(BACKBONE))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*options):
        monkeypatch.setattr(sys, 'argv', [str(BACKBONE), *map(str, options)])
        return tool['main']()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_row_for_every_case(compared):
    results = read(compared[0] / 'a.json')
    assert results['finished'] is True
    rows = results['rows']
    assert [row['mode'] for row in rows] == ['eval', 'train']
    for row in rows:
        assert (row['input'], row['window'], row['rounds']) == ('64x128', 4, 2)
        able = ['timm', *RUNTIMES] if row['mode'] == 'eval' else ['timm']
        assert list(row['ms']) == ['ours', 'ours_sequential', *able]
        assert list(row['ratios']) == able
        assert 0 < row['roofline'] < 1
        assert set(row['samples_ms']) == {*row['ms'], 'matmul', 'mm'}
        for name, (low, high) in row['quartiles_ms'].items():
            assert 0 < low <= row['ms'][name] <= high
        assert_ratios_are_of_the_samples(row)
    assert min(rows[1]['peak_mb'].values()) > 1  # activations are far more than a page or two


def test_the_roofline_is_flops_over_the_rate_of_the_product(compared):
    for row in read(compared[0] / 'a.json')['rows']:
        flops = count_flops(Case((64, 128), 4, row['mode'], 'nano'))
        assert row['gflops'] * 1e9 == pytest.approx(flops)
        samples = row['samples_ms']
        for name, field in (('matmul', 'roofline'), ('mm', 'share_of_mm')):
            ideal = [row['gflops'] / (2 * 2048**3 / 1e9 / ms) for ms in samples[name]]
            shares = [best / ours for best, ours in zip(ideal, samples[row['ours']])]
            assert row[field] == pytest.approx(statistics.median(shares))


def test_the_peers_compute_the_same(compared):
    differences = read(compared[0] / 'a.json')['rows'][0]['differences']
    # At window 4 the last map is 2 x 4, to which both shrink the window; the others are multiples of it.
    assert 0 < differences['timm'] < 1e-4
    assert differences['ours_sequential'] < 1e-4
    assert all(0 < differences[name] < 1e-4 for name in RUNTIMES)


def test_who_cannot_run_is_named_and_the_others_go_on(compared):
    folder, done = compared
    results = read(folder / 'a.json')
    cases = [f'hf, backbone nano 64x128 window 4 fp32 {mode}' for mode in ('eval', 'train')]
    why = 'ImportError: half an installation'
    assert results['failed'] == [{'what': case, 'why': why} for case in cases]
    assert 'half an installation' in done.stderr
    assert f'- {cases[0]}: {why}' in done.stdout
    if ABSENT:
        assert 'pip install' in results['header']['settings']['absent']['mmpretrain']
        assert 'mmpretrain is not installed' in done.stderr
        assert 'mmpretrain is not installed' in done.stdout


def test_the_header_says_on_what_it_ran(compared):
    header = read(compared[0] / 'a.json')['header']
    assert '--backends auto sequential' in header['command']
    assert header['machine']['threads'] == 1
    assert header['machine']['cores'] == os.cpu_count()
    assert {'torch', 'timm', 'swinv2_mm'} <= set(header['versions'])


def test_tables_and_figure_can_be_made_again(compared, call_tool, tmp_path):
    folder, done = compared
    text = (folder / 'a.md').read_text()
    assert done.stdout.strip() == text.strip()
    assert '| input | window | mode | ours, ms | ours_sequential, ms | timm, ms |' in text
    assert '\n| 64x128 | 4 | train | ' in text
    assert (folder / 'a.png').stat().st_size > 10_000
    again = ('--from-json', folder / 'a.json', '--plot', tmp_path / 'b.svg')
    assert call_tool(*again, '--markdown', tmp_path / 'b.md') == 0
    assert (tmp_path / 'b.md').read_text() == text
    assert 'timm' in (tmp_path / 'b.svg').read_text()


@pytest.mark.long
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
    assert rows[0]['time_factor'] == rows[2]['time_factor'] == {}
    for before, row in ((rows[0], rows[1]), (rows[2], rows[3])):
        pairs = zip(row['samples_ms']['ours'], before['samples_ms']['ours'])
        assert row['time_factor']['ours'] == pytest.approx(
            statistics.median(a / b for a, b in pairs)
        )
    assert 'Growth with resolution' in done.stdout and '| x time |' in done.stdout
    assert (tmp_path / 'a.png').exists()


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (('--json', 'nowhere/a.json'), 'the folder nowhere does not exist'),
        (('--rounds', '0'), '--rounds 0: expected at least 1'),
        (('--from-json', 'wrong.json'), 'wrong.json has results of another shape than expected'),
    ],
)
def test_a_wrong_option_is_said_in_a_line(options, expected, call_tool, tmp_path, capsys):
    wrong = tmp_path / 'wrong.json'
    wrong.write_text('{"header": {"machine": 1}, "rows": [{"ms": 3}], "failed": []}')
    assert call_tool(*(wrong if option == wrong.name else option for option in options)) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1


def test_a_file_without_results_is_named(tmp_path):
    for text, expected in (('no json', 'is not a json file'), ('[1]', 'is not a result')):
        (tmp_path / 'a.json').write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_results(tmp_path / 'a.json')


def test_a_build_leaves_the_benchmarks_out(tmp_path):
    command = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {'swinv2_mm', 'swinv2_mm_cli.py'}
    tools = {path.name for path in (tmp_path / 'swinv2_mm/.mim/tools').rglob('*.py')}
    assert 'train.py' in tools and not tools & {BACKBONE.name, MODEL.name, 'gpu_report.py'}


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
    ('number', 'code'),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.long)],
)
def test_no_process_outlives_the_benchmark(number, code, environment, tmp_path):
    command = [sys.executable, str(BACKBONE), *SMALL, '--peers', '--input', '64x64']
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
        assert len(workers) == 2  # ours, and the matrix products
        main.send_signal(number)
        main.communicate(timeout=180)
    finally:
        main.kill()
    assert main.returncode == code
    left = list(tmp_path.glob('swinv2_mm_benchmark_*'))
    assert len(left) == (number == signal.SIGKILL)
    wait_for(lambda: not any(is_running(pid) for pid in workers), 30)


def test_a_process_that_dies_is_reported_and_started_again():
    (product,) = products('mm')
    case = Case((64, 64), 8, 'eval')
    with Pool(threads=1, device='cpu') as pool:
        worker = pool.worker(product, case)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ContestantError, match='signal 9'):
            worker.ask('peak', 60, key='nothing')
        assert not worker.is_alive
        again = pool.worker(product, case)
        assert again is not worker
        with pytest.raises(ContestantError, match='KeyError'):
            again.ask('peak', 60, key='nothing')
        assert again.is_alive
        with pytest.raises(ContestantError, match='cut off after 0 s'):
            again.ask('peak', 0, key='nothing')
        assert not again.is_alive


@pytest.mark.long
def test_a_training_step_beside_swin_v1(run_tool, tmp_path):
    done = run_tool(
        MODEL,
        *SMALL,
        *('--task', 'semantic_fpn', '--peers', 'swin_v1', '--input', '64x64', '--rounds', '2'),
        *('--json', tmp_path / 'a.json', '--plot', tmp_path / 'a.png'),
    )
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / 'a.json')
    assert results['failed'] == []
    assert [row['mode'] for row in results['rows']] == ['eval', 'train']
    for row in results['rows']:
        assert (row['task'], row['batch'], row['rounds']) == ('semantic_fpn', 2, 2)
        assert set(row['ms']) == {'ours', 'swin_v1'}
        for name, ms in row['ms'].items():
            assert row['images_per_s'][name] == pytest.approx(2000 / ms)
        assert_ratios_are_of_the_samples(row)
    inference, training = results['rows']
    assert set(inference['parts_ms']) == {'preprocessing', 'backbone', 'neck', 'decode_head'}
    assert min(inference['parts_ms'].values()) > 0
    assert min(training['losses'].values()) > 1
    assert '| images/s |' in done.stdout
    assert (tmp_path / 'a.png').exists()


def test_ratios_pair_what_was_measured_together():
    # The machine was three times slower in the second round; the ratio of medians would be 1.
    assert pairwise_ratio([2.0, 6.0, 2.0], [1.0, 3.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match='2 and 1 samples'):
        pairwise_ratio([1.0, 2.0], [1.0])


def test_sizes_of_images():
    assert parse_size('800x1344') == (800, 1344)
    assert parse_size('512') == (512, 512)
    with pytest.raises(ValueError, match="'64by64' is not a size"):
        parse_size('64by64')
