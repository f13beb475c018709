"""Kill a training at each of its file operations on checkpoints, and resume it.

`python kill_points.py FOLDER SETTINGS` forks a process for each operation, which ends by SIGKILL just before it, and
one that resumes. It prints a line of json for each: the operation, the checkpoint that is found, and whether the
weights at the end equal those of a run that was not killed.
"""

import json
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from tiny_run import build

from swinv2_mm.engine.checkpoint_files import newest_checkpoint

torch.set_num_threads(1)


def forked(function):
    """Run a function in a child process and return its exit status."""
    child = os.fork()
    if not child:
        with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            function()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(point, work_dir, seen):
    """Return an audit hook that kills this process before its operation number `point` on checkpoints."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event not in ('open', 'os.rename', 'os.remove'):
            return
        path = str(arguments[0])
        if path.startswith(work_dir) and ('.pth' in path or 'last_checkpoint' in path):
            if event == 'open' and 'w' not in str(arguments[1]):
                return
            count += 1
            if count == point:
                seen.write_text(f'{event} {os.path.basename(path)}')
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def train(point, work_dir, seen, settings):
    """Train until operation number `point`."""
    sys.addaudithook(killed_at(point, str(work_dir), seen))
    build(work_dir, **settings).train()


def resume(work_dir, settings):
    """Go on with a training."""
    build(work_dir, **settings, resume=True).train()


def main(folder, settings):
    """Go through the operations until a run ends by itself."""
    whole = folder / 'whole'
    build(whole, **settings).train()  # not forked, so that the others find everything imported
    expected = torch.load(newest_checkpoint(whole), weights_only=False)['state_dict']
    for point in range(1, 200):
        work_dir, seen = folder / str(point), folder / f'{point}.txt'

        if forked(partial(train, point, work_dir, seen, settings)) == 0:
            break
        found = newest_checkpoint(work_dir)
        left = sorted(file.name for file in work_dir.glob('*.pth'))
        status = forked(partial(resume, work_dir, settings))
        final = newest_checkpoint(work_dir)
        ended = torch.load(final, weights_only=False)['state_dict'] if final else {}
        print(json.dumps({
            'point': point, 'at': seen.read_text(), 'left': left, 'found': found and os.path.basename(found),
            'resumed': status == 0, 'temporary': [file.name for file in work_dir.glob('.*')],
            'equal': all(key in ended and value.equal(ended[key]) for key, value in expected.items()),
            'files': sorted(file.name for file in work_dir.glob('*.pth')),
        }), flush=True)  # fmt: skip


if __name__ == '__main__':
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
