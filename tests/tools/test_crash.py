"""Signals, kills, full disks and NaN: what is left of a training, and what it says.

Most runs are those of `tiny_run.py`: mmengine's own Runner with the hooks that any config can name. All are real
processes that get real signals.
"""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from process_runs import TINY, children, ends, finish, iteration_of, read_until
from tool_runs import FAST, SEGMENTATION

from swinv2_mm.engine.checkpoint_files import newest_checkpoint


def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(start, tmp_path):
    settings = {'iters': 4, 'checkpoint': {'save_best': 'tiny/score', 'rule': 'less'}}
    code, output = finish(
        start(TINY.with_name('kill_points.py'), tmp_path, json.dumps(settings)), 300
    )
    assert code == 0, output
    points = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
    assert len(points) >= 25
    for point in points:
        assert point['resumed'] and point['equal'], point
        assert point['found'] or point['point'] <= 2, point  # nothing had been saved yet
        assert not point['temporary'], point
        assert 'iter_4.pth' in point['files'], point
        assert sum(not name.startswith('best_') for name in point['files']) == 1, point


@pytest.mark.parametrize(
    ('number', 'expected', 'settings'),
    [
        (signal.SIGTERM, 143, {'workers': 2, 'checkpoint': {'interval': 10**6}}),
        (signal.SIGUSR1, 143, {'workers': 2, 'epochs': 10**6, 'checkpoint': {'interval': 10**6}}),
        (signal.SIGINT, 130, {'val_interval': 1, 'sleep': 0.2, 'checkpoint': {'interval': 10**6}}),
    ],
    ids=['SIGTERM', 'SIGUSR1-by-epoch', 'SIGINT-in-validation'],
)
def test_a_signal_saves_the_iteration_and_ends(tiny, tmp_path, number, expected, settings):
    process = tiny(iters=10**6, **{'sleep': 0.05, **settings})
    read_until(process, r'\(val\) \[2/4\]' if number == signal.SIGINT else r'\(train\).*\[ *3/')
    os.killpg(process.pid, number)  # as Slurm and a terminal do: the workers get it, too
    code, output = finish(process, 90)
    assert code == expected, output
    assert 'Traceback' not in output
    assert 'stopping after this iteration' in output
    path = newest_checkpoint(tmp_path / 'run')
    assert Path(path).name == (
        'interrupted.pth' if 'epochs' in settings else f'iter_{iteration_of(path)}.pth'
    )
    assert (tmp_path / 'run' / 'last_checkpoint').read_text() == path
    assert not list((tmp_path / 'run').glob('.*'))


@pytest.mark.parametrize('resume', [False, True])
def test_a_training_that_is_killed_before_its_first_checkpoint_is_not_resumed_from_another(
    tiny, tmp_path, resume
):
    keep = {'max_keep_ckpts': -1}
    assert finish(tiny(iters=4, checkpoint=keep), 60)[0] == 0
    folder = tmp_path / 'run'
    if resume:  # from a damaged file to an older one
        (folder / 'iter_4.pth').write_bytes(b'')
    process = tiny(iters=10**6, sleep=0.2, checkpoint={'interval': 10**6}, resume=resume)
    read_until(process, r'\(train\).*\[ *[3-5]/')
    process.kill()
    finish(process, 10)
    newest = newest_checkpoint(folder)
    assert newest == (str(folder / 'iter_3.pth') if resume else None)
    moved = {file.name for file in folder.glob('earlier_*/*.pth')}
    assert moved == {f'iter_{step}.pth' for step in ((4,) if resume else (1, 2, 3, 4))}


def test_a_second_signal_ends_at_once(tiny):
    process = tiny(iters=10**6, sleep=30)
    read_until(process, 'Checkpoints will be saved')
    time.sleep(2)  # in the first step
    process.send_signal(signal.SIGTERM)
    read_until(process, 'send it again to stop at once')
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 10)[0] == 143


def test_the_tool_says_how_to_go_on_after_sigterm(start, tmp_path):
    command = ['tools/train.py', SEGMENTATION, '--work-dir', tmp_path, '--cfg-options', *FAST]
    process = start(*command, 'default_hooks.logger.interval=1')
    read_until(process, r'\(train\).*\[ *2/')
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143, output
    found = re.search(
        r'to continue from (\S+iter_(\d+)\.pth): the same command with --resume', output
    )
    assert iteration_of(found[1]) == int(found[2]) >= 2
    assert 'Traceback' not in output


def test_workers_end_after_the_main_process_is_killed(tiny):
    process = tiny(iters=10**6, workers=2, sleep=1, ballast=1 << 20)  # their pipe is full
    read_until(process, r'\(train\).*\[ *2/')
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    assert all(ends(worker, 10) for worker in workers)


def test_weights_that_are_nan_are_not_saved(tiny, tmp_path):
    code, output = finish(tiny(iters=5, nan_at=4))
    assert code == 0, output
    path = newest_checkpoint(tmp_path / 'run')
    assert [file.name for file in (tmp_path / 'run').glob('*.pth')] == ['iter_3.pth']
    assert torch.load(path, weights_only=False)['state_dict']['layer.weight'].isfinite().all()
    assert 'the checkpoint of iteration 4 is not saved: 2 tensors are NaN or infinite' in output
    report = json.loads((tmp_path / 'run' / 'invalid_values.json').read_text())
    assert report['iteration'] == 4
    assert report['losses']['loss'] == '[nan]'
    assert report['weights'] == ['layer.weight', 'layer.bias']
    assert [sample['img_path'] for sample in report['samples']] == ['6.png', '7.png']


@contextmanager
def small_disk(path, size):
    """Mount a file system of some bytes."""
    path.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('file systems cannot be mounted here')
    try:
        yield path
    finally:
        subprocess.run(['umount', '-l', str(path)], check=True)


def test_a_full_disk_is_told_in_one_sentence(start, tmp_path):
    command = [
        'tools/train.py',
        SEGMENTATION,
        '--cfg-options',
        *FAST,
        'default_hooks.checkpoint.interval=1',
    ]
    with small_disk(tmp_path / 'disk', 50 << 20) as disk:
        code, output = finish(start(*command, '--work-dir', disk))
        assert code == 2, output
        assert output.splitlines()[-1] == (
            f'{disk}/iter_2.pth cannot be written (No space left on device); earlier checkpoints are unchanged.'
        )
        assert 'Traceback' not in output
        assert newest_checkpoint(disk) == f'{disk}/iter_1.pth'
        assert not list(disk.glob('.*'))


def test_a_work_directory_that_is_removed_is_told_in_one_sentence(start, tmp_path):
    command = [
        'tools/train.py',
        SEGMENTATION,
        '--cfg-options',
        *FAST,
        'default_hooks.logger.interval=1',
    ]
    process = start(*command, '--work-dir', tmp_path / 'run')
    read_until(process, r'\(train\).*\[ *1/')
    subprocess.run(['rm', '-r', tmp_path / 'run'], check=True)
    code, output = finish(process)
    assert code == 2, output
    assert (
        output.splitlines()[-1]
        == f'The work directory {tmp_path / "run"} was removed or unmounted during the run.'
    )
    assert 'Traceback' not in output
    assert not (tmp_path / 'run').exists()


def test_no_temporary_folder_is_told_in_one_sentence(start, tmp_path):
    lines = 'import tempfile, sys; tempfile._candidate_tempdir_list = lambda: ["/proc"]; sys.argv = sys.argv[1:]'
    code, output = finish(
        start('-c', f'{lines}; exec(open(sys.argv[0]).read())', 'tools/train.py', SEGMENTATION)
    )
    assert code == 2, output
    assert output == 'No folder for temporary files can be written to: set TMPDIR to one.\n'


def test_a_dead_worker_ends_the_run_with_a_reason(tiny):
    process = tiny(iters=10**6, workers=2, sleep=0.05)
    read_until(process, r'\(train\).*\[ *2/')
    os.kill(min(children(process.pid)), signal.SIGKILL)  # of the training, not of a validation
    code, output = finish(process)
    assert code == 1
    assert 'a data loading process died' in output, output
