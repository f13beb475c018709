"""Several processes: signals reach all of them, and a lost one ends the run with a reason."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from process_runs import children, finish, free_port, iteration_of, read_until
from tool_runs import ROOT

from swinv2_mm.engine.checkpoint_files import newest_checkpoint


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_all_processes_stop_at_the_same_iteration(pair, tmp_path, number):
    process = pair(free_port(), checkpoint={'interval': 10**6})
    read_until(process, r'\(train\).*\[ *3/')
    process.send_signal(number)
    code, output = finish(process, 90)
    assert code == 143, output
    assert 'Traceback' not in output
    path = newest_checkpoint(tmp_path / 'run')
    assert Path(path).name == f'iter_{iteration_of(path)}.pth'


def test_one_process_that_is_asked_stops_the_others(pair, tmp_path):
    process = pair(free_port(), checkpoint={'interval': 10**6})
    read_until(process, r'\(train\).*\[ *3/')
    os.kill(children(process.pid)[1], signal.SIGTERM)
    code, output = finish(process, 90)
    assert code == 143, output
    assert newest_checkpoint(tmp_path / 'run')


@pytest.mark.parametrize(
    ('number', 'reason'),
    [
        (signal.SIGSTOP, r'After 4 s, process \d does not respond'),
        (signal.SIGKILL, r'Process \d was ended by signal 9'),
    ],
)
def test_a_lost_process_ends_the_run_with_a_reason(pair, number, reason):
    process = pair(free_port(), heartbeat=4)
    read_until(process, r'\(train\).*\[ *3/')
    lost = children(process.pid)[1]
    os.kill(lost, number)
    read_until(process, reason)
    if number == signal.SIGSTOP:
        os.kill(lost, signal.SIGCONT)  # torchrun leaves it 30 s otherwise
    assert finish(process, 90)[0] == 1


def test_a_dead_worker_ends_all_processes_with_a_reason(pair):
    process = pair(free_port(), workers=1, heartbeat=4)
    read_until(process, r'\(train\).*\[ *3/')
    os.kill(min(children(children(process.pid)[1])), signal.SIGKILL)
    code, output = finish(process, 90)
    assert code == 1, output
    assert 'a data loading process died' in output, output


def test_a_port_in_use_is_told(pair):
    with socket.socket() as used:
        used.bind(('127.0.0.1', 0))
        used.listen()
        code, output = finish(pair(used.getsockname()[1]), 60)
    assert code == 2, output
    assert 'hint: another run uses this port' in output
    assert 'Traceback' not in output


SLURM = {
    'srun': 'echo srun "$@" >> "$CALLS"\ntrap "exit 143" USR1\necho $$ > "$CALLS.pid"\n'
    'for _ in $(seq 300); do sleep 0.1; done',
    'sbatch': 'echo sbatch "$@" >> "$CALLS"',
    'scancel': 'echo scancel "$@" >> "$CALLS"\nkill -USR1 $(cat "$CALLS.pid")',
    'scontrol': 'echo scontrol "$@" >> "$CALLS"',
}
"""Stand-ins for Slurm's commands, which note how they are called."""


def test_a_slurm_job_saves_and_is_queued_again(tmp_path, environment):
    for name, text in SLURM.items():
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / 'calls'
    path = f'{tmp_path}:{environment["PATH"]}'
    env = {
        **environment,
        'PATH': path,
        'CALLS': str(calls),
        'REQUEUE': '1',
        'SBATCH_ARGS': '--time=60',
    }
    command = ['tools/slurm_train.sh', 'part', 'name', 'config.py', 'run']
    subprocess.run(command, env=env, cwd=ROOT, check=True)
    assert re.search(
        r'sbatch .*--requeue .*--signal=B:USR1@120 --time=60 .*slurm_train.sh part name',
        calls.read_text(),
    )
    job = {
        **env,
        'SWINV2_MM_TOOLS': f'{ROOT}/tools',
        'SLURM_JOB_ID': '7',
        'SLURM_RESTART_COUNT': '1',
    }
    process = subprocess.Popen(command, env=job, cwd=ROOT)
    deadline = time.monotonic() + 10
    while not Path(f'{calls}.pid').exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 143
    _, srun, scancel, scontrol = calls.read_text().splitlines()
    assert srun.endswith('train.py config.py --work-dir run --launcher slurm --resume')
    assert (scancel, scontrol) == ('scancel --signal=USR1 7', 'scontrol requeue 7')
