"""Train a quickstart under random kills, and compare it with a training that was not disturbed.

`python tests/soak.py [--minutes 30] [--folder DIR]` generates a small data set and trains undisturbed for about a
quarter of the time. Then it trains again: the process is ended by SIGKILL, SIGTERM or SIGINT at random moments and
started with `--resume`, until the training ends. It prints a summary as json and exits with 1 if weights, losses or
metrics differ in any digit, or if a process or a temporary file is left.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/quickstart/mask-rcnn_swinv2-nano_fpn_shapes.py'
OPTIONS = (
    *('train_dataloader.batch_size=4', 'train_cfg.val_interval=1'),
    *('default_hooks.checkpoint.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=1'),
    *('default_hooks.checkpoint.save_best=coco/bbox_mAP', 'default_hooks.logger.interval=1'),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Usage:
    """Largest memory, number of open files and disk space seen."""

    def __init__(self) -> None:
        self.memory = self.files = self.disk = 0

    def look(self, process: subprocess.Popen, work_dir: Path) -> None:
        """Update the figures."""
        proc = Path('/proc') / str(process.pid)
        try:
            status = (proc / 'status').read_text()
            self.files = max(self.files, len(list((proc / 'fd').iterdir())))
        except OSError:
            return
        resident = status.partition('VmRSS:')[2].split()
        if resident:
            self.memory = max(self.memory, int(resident[0]) >> 10)
        sizes = 0
        for file in work_dir.glob('*.pth'):
            try:
                sizes += file.stat().st_size
            except OSError:
                continue
        self.disk = max(self.disk, sizes >> 20)


def start(folder: Path, work_dir: Path, epochs: int, *arguments: str) -> subprocess.Popen:
    """Start the training in a session of its own."""
    command = [
        sys.executable,
        'tools/train.py',
        CONFIG,
        '--work-dir',
        work_dir,
        '--device',
        'cpu',
        *arguments,
    ]
    command += ['--cfg-options', f'train_cfg.max_epochs={epochs}', *OPTIONS]
    with (folder / 'console.txt').open('ab') as console:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, 'SWINV2_MM_SHAPES': str(folder / 'data')},
            stdout=console,
            stderr=console,
            start_new_session=True,
        )


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if fields[0] != 'Z' and int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return found


def losses_of(work_dir: Path) -> dict[int, float]:
    """Return the last loss that was logged for each iteration."""
    losses = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut by a kill
            if 'loss' in record:
                losses[record['step']] = record['loss']
    return losses


def result_of(work_dir: Path, epochs: int) -> dict:
    """Return what two trainings must have in common."""
    state = torch.load(work_dir / f'epoch_{epochs}.pth', weights_only=False)['state_dict']
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    return dict(state=state, metrics=metrics, losses=losses_of(work_dir))


def main() -> int:
    """Run the soak and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30.0, help='for all of it (default: 30)')
    parser.add_argument(
        '--epochs', type=int, help='length of the training (default: fills the time)'
    )
    parser.add_argument(
        '--folder', type=Path, default=Path('work_dirs/soak'), help='for data and runs'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    # Shells start jobs in the background with SIGINT ignored, which processes inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, draw = args.folder.absolute(), random.Random(args.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generate = ['tools/dataset_converters/generate_shapes.py', str(folder / 'data')]
    generate += ['--num-train', '48', '--num-val', '12', '--image-size', '128', '128']
    subprocess.run([sys.executable, *generate], cwd=ROOT, check=True)

    plain, killed, began = folder / 'plain', folder / 'killed', time.time()
    epochs = args.epochs
    if epochs is None:
        assert start(folder, folder / 'trial', 1).wait() == 0, folder / 'console.txt'
        first = time.time() - began
        assert start(folder, folder / 'trial', 3, '--resume').wait() == 0, folder / 'console.txt'
        epoch = max(1.0, (time.time() - began - 2 * first) / 2 + 1.0)
        epochs = max(2, int(args.minutes * 60 / 4 / epoch))
    assert start(folder, plain, epochs).wait() == 0, folder / 'console.txt'

    usage, ended, left = Usage(), [], 0
    arguments: tuple[str, ...] = ()
    while True:
        process = start(folder, killed, epochs, *arguments)
        arguments = ('--resume',)
        until = time.time() + draw.uniform(5.0, 45.0)
        while process.poll() is None and time.time() < until:
            usage.look(process, killed)
            time.sleep(0.2)
        if process.poll() is not None:
            break
        number = draw.choice(SIGNALS)
        process.send_signal(number)
        ended.append([signal.Signals(number).name, process.wait(timeout=120)])
        limit = time.time() + 10
        while processes_of(process.pid) and time.time() < limit:
            time.sleep(0.2)
        left += len(processes_of(process.pid))
    expected, found = result_of(plain, epochs), result_of(killed, epochs)
    equal = dict(
        weights=expected['state'].keys() == found['state'].keys()
        and all(value.equal(found['state'][key]) for key, value in expected['state'].items()),
        losses=expected['losses'] == found['losses'],
        metrics=expected['metrics'] == found['metrics'],
    )
    temporary = [file.name for file in killed.glob('.*')]
    checkpoints = sorted(file.name for file in killed.glob('*.pth'))
    summary = dict(
        minutes=round((time.time() - began) / 60, 1), epochs=epochs, iterations=len(expected['losses']),
        kills=len(ended), ended=ended, exit_code=process.returncode, equal=equal, processes_left=left,
        temporary_files=temporary, checkpoints=checkpoints, memory_mb=usage.memory, open_files=usage.files,
        checkpoints_mb=usage.disk, metrics=found['metrics'],
    )  # fmt: skip
    (folder / 'summary.json').write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))
    whole = process.returncode == 0 and all(equal.values()) and not left and not temporary
    return 0 if whole else 1


if __name__ == '__main__':
    sys.exit(main())
