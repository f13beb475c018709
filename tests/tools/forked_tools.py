"""Processes that run a tool, forked from one that has imported the libraries, which takes longer than a tiny run."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

_IMPORTS = ('swinv2_mm.engine.launch', 'mmdet.apis', 'mmseg.apis', 'mmpretrain.apis')


def start_tool(command, env, cwd, out, before=None):
    """Start a script and return its `multiprocessing.Process`.

    Args:
        command: The script and its arguments.
        env: All its environment variables.
        cwd: Its working directory.
        out: Prefix of the files for its output: `<out>.out` and `<out>.err`.
        before: A picklable function that is called in the process before the script.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(_IMPORTS))
    process = context.Process(
        target=_run, args=(list(command), dict(env), str(cwd), str(out), before)
    )
    process.start()
    return process


def run_tool(command, env, cwd, out, before=None, timeout=300):
    """Run a script to its end and return it like `subprocess.run`; the return code is `-9` after `SIGKILL`."""
    process = start_tool(command, env, cwd, out, before)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(command, timeout)
    return subprocess.CompletedProcess(
        command, process.exitcode, Path(f'{out}.out').read_text(), Path(f'{out}.err').read_text()
    )


def _run(command, env, cwd, out, before):
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, name in ((1, 'out'), (2, 'err')):
        file = os.open(f'{out}.{name}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    if before is not None:
        before()
    runpy.run_path(command[0], run_name='__main__')
