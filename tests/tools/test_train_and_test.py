"""tools/train.py and tools/test.py from the command line, on both tasks."""

import json
import pickle
import re
import signal
import subprocess
import sys
import time

import cv2
import pytest
from tool_runs import DETECTION, FAST, NOISE, ROOT, SEGMENTATION, log_of

TRAIN, TEST = 'tools/train.py', 'tools/test.py'


def assert_ok(process):
    assert process.returncode == 0, process.stdout + process.stderr


def assert_quiet(process, log):
    """The terminal has none of what the libraries log, and the log file has it."""
    console = process.stdout + process.stderr
    for text in NOISE:
        assert text not in console, f'{text!r} on the console:\n{console}'
    assert 'System environment' in log
    assert process.stderr == ''


@pytest.fixture(scope='module')
def detector(run_tool, tmp_path_factory):
    """A work directory after two iterations of the detection quickstart, and the process."""
    work_dir = tmp_path_factory.mktemp('detector')
    process = run_tool(
        TRAIN,
        DETECTION,
        '--work-dir',
        work_dir,
        '--max-iters',
        2,
        '--cfg-options',
        *FAST,
        fresh=True,
    )
    return work_dir, process


@pytest.fixture(scope='module')
def segmentor(run_tool, tmp_path_factory):
    """A work directory after two iterations of the segmentation quickstart, and the process."""
    work_dir = tmp_path_factory.mktemp('segmentor')
    process = run_tool(
        TRAIN, SEGMENTATION, '--work-dir', work_dir, '--max-iters', 2, '--amp', '--auto-scale-lr',
        '--cfg-options', *FAST, 'optim_wrapper.accumulative_counts=2', fresh=True,
    )  # fmt: skip
    return work_dir, process


def test_a_detector_trains_and_says_what_matters(detector):
    work_dir, process = detector
    assert_ok(process)
    console = process.stdout
    assert 'schedule: 2 iterations instead of 5 epochs, then one validation' in console
    assert 'data: 6 training images; batch: 2 per' in console
    assert (
        'batch: 2 per device x 1 device x 1 accumulation = 2; learning rate: 0.002 (AdamW)'
        in console
    )
    assert (
        'WARNING - the learning rate is for a batch of 8, this run has 2: use --auto-scale-lr'
        in console
    )
    assert re.search(r'Iter\(train\) \[2/2\] .* lr: \S+  eta: 0:00:00 .* loss: \d+\.\d+', console)
    checkpoint, log = work_dir / 'iter_2.pth', next(work_dir.glob('*/*.log'))
    assert console.rstrip().endswith(f'checkpoint: {checkpoint}; log: {log}')
    assert checkpoint.is_file()
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert {'bbox_mAP', 'segm_mAP', 'bbox_mAP_50'} <= set(metrics)
    assert re.search(r'Iter\(val\) .* coco/bbox_mAP: 0\.\d+', console)
    assert f'metrics written to {work_dir / "metrics.json"}' in console
    assert_quiet(process, log_of(work_dir))


def test_a_segmentor_trains_in_mixed_precision_with_scaled_learning_rate(segmentor):
    work_dir, process = segmentor
    assert_ok(process)
    console = process.stdout
    assert 'mixed precision: bf16' in console or 'mixed precision: fp16' in console
    assert '2 per device x 1 device x 2 accumulation = 4; learning rate:' in console
    rate = re.search(r'learning rate: (\S+), scaled', console)
    assert float(rate[1]) == pytest.approx(0.002 * 4 / 8)
    assert 'use --auto-scale-lr' not in console
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert set(metrics) == {'aAcc', 'mIoU', 'mAcc'}
    assert_quiet(process, log_of(work_dir))


def test_a_detector_is_evaluated_and_drawn(detector, run_tool, tmp_path):
    trained, _ = detector
    shown, predictions = tmp_path / 'vis', tmp_path / 'out' / 'predictions.pkl'
    process = run_tool(
        TEST, DETECTION, trained / 'last_checkpoint', '--work-dir', tmp_path, '--show-dir', shown,
        '--show-max', 3, '--out', predictions, '--cfg-options', *FAST,
    )  # fmt: skip
    assert_ok(process)
    assert json.loads((tmp_path / 'test_metrics.json').read_text()) == json.loads(
        (trained / 'metrics.json').read_text()
    )
    pictures = sorted(shown.glob('*.png'))
    assert [path.name for path in pictures] == [f'shape_{index:05}.png' for index in range(3)]
    assert cv2.imread(str(pictures[0])).shape == (246, 456, 3)  # ground truth beside prediction
    assert f'pictures: 3 in {shown}' in process.stdout
    with predictions.open('rb') as file:
        assert len(pickle.load(file)) == 4
    assert_quiet(process, log_of(tmp_path))


def test_a_detector_is_evaluated_at_several_sizes(detector, run_tool, tmp_path):
    trained, _ = detector
    process = run_tool(
        TEST, DETECTION, trained, '--work-dir', tmp_path, '--tta-scales', 1, 1.5, '--out', tmp_path / 'out.json',
        '--cfg-options', *FAST,
    )  # fmt: skip
    assert_ok(process)
    assert 'test-time augmentation: horizontal flip, at 1, 1.5 times the size' in process.stdout
    assert {'bbox_mAP', 'segm_mAP'} <= set(json.loads((tmp_path / 'test_metrics.json').read_text()))
    written = json.loads((tmp_path / 'out.json').read_text())
    assert written and all('segmentation' in instance for instance in written)


def test_a_segmentor_is_evaluated_with_flips_and_drawn(segmentor, run_tool, tmp_path):
    trained, _ = segmentor
    shown, predictions = tmp_path / 'vis', tmp_path / 'predictions'
    process = run_tool(
        TEST, SEGMENTATION, trained, '--work-dir', tmp_path, '--tta', '--show-dir', shown, '--out', predictions,
        '--cfg-options', *FAST,
    )  # fmt: skip
    assert_ok(process)
    assert 'test-time augmentation: horizontal flip' in process.stdout
    assert set(json.loads((tmp_path / 'test_metrics.json').read_text())) == {'aAcc', 'mIoU', 'mAcc'}
    assert len(list(shown.glob('*.png'))) == 4
    assert cv2.imread(str(shown / 'shape_00000.png')).shape == (246, 456, 3)
    assert cv2.imread(str(predictions / 'shape_00000.png'), cv2.IMREAD_UNCHANGED).max() <= 4
    assert_quiet(process, log_of(tmp_path))


def test_training_resumes_where_it_stopped(detector, run_tool):
    work_dir, _ = detector
    process = run_tool(
        TRAIN,
        DETECTION,
        '--work-dir',
        work_dir,
        '--resume',
        '--max-iters',
        3,
        '--cfg-options',
        *FAST,
    )
    assert_ok(process)
    assert f'resuming from {work_dir / "iter_2.pth"}' in process.stdout
    assert 'Iter(train) [3/3]' in process.stdout
    assert 'Iter(train) [1/3]' not in process.stdout
    assert (work_dir / 'iter_3.pth').is_file()


def test_an_interrupted_training_says_how_to_go_on(environment, tmp_path):
    command = [sys.executable, TRAIN, DETECTION, '--work-dir', str(tmp_path)]
    # With a data loading process, which gets the signal from the terminal as well.
    options = ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.by_epoch=False']
    options += [
        'default_hooks.checkpoint.interval=1',
        'train_cfg.max_epochs=1000',
        'train_dataloader.batch_size=2',
    ]
    process = subprocess.Popen(
        [*command, '--cfg-options', *options], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if re.search(r'\(train\) .*\[ *2/', line):
                break
        time.sleep(0.2)
        subprocess.run(['kill', f'-{signal.SIGINT.value}', '--', f'-{process.pid}'], check=True)
        console, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, console + errors
    assert console.count('stopping after this iteration') == 1
    (stopped,) = re.findall(r'interrupted at iteration (\d+)', console)
    assert re.search(rf'to continue from .*iter_{stopped}\.pth: the same command with', console)
    assert 'Traceback' not in console + errors


def test_a_crash_is_reported_in_a_few_lines_and_logged_in_full(run_tool, tmp_path):
    process = run_tool(
        TRAIN, DETECTION, '--work-dir', tmp_path, '--cfg-options', *FAST, 'model.roi_head.bbox_head.in_channels=63'
    )  # fmt: skip
    assert process.returncode == 1
    assert 'Traceback' not in process.stdout + process.stderr
    lines = process.stderr.splitlines()
    assert lines[0].startswith('RuntimeError: ')
    assert re.fullmatch(r'  at .*\.py:\d+ in \w+', lines[1])
    assert lines[-1] == f'  full traceback: {next(tmp_path.glob("*/*.log"))}'
    assert 'Traceback (most recent call last)' in log_of(tmp_path)
