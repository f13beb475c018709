"""Checkpoint files: paths that a user types, the newest one that can be resumed, and writing without half files."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from pathlib import Path

from swinv2_mm.checkpoints import CheckpointError, UntrustedCheckpointError
from swinv2_mm.checkpoints.safe_load import read_checkpoint_file
from swinv2_mm.engine.console import warn
from swinv2_mm.engine.errors import SetupError

POINTER = 'last_checkpoint'
"""Name of the text file in which mmengine keeps the path of the newest checkpoint of a work directory."""
INTERRUPTED = 'interrupted.pth'
"""Name of the checkpoint of an interrupted run that saves by epoch; removed after the next checkpoint."""
_RESULTS = (POINTER, 'metrics.json', 'curves.png', 'val_pictures')
"""What a training writes beside its checkpoints, and the next one only later."""
_TEMPORARY = '.tmp'


def replace_file(path: str | Path, data: bytes) -> None:
    """Write a file so that `path` always holds all of the old or all of the new data, also after a loss of power."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}{_TEMPORARY}')
    try:
        with temporary.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # not every system can open or sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_temporary_files(folder: str | Path) -> None:
    """Remove what `replace_file` left in a folder in processes that were killed."""
    for file in Path(folder).glob(f'.*{_TEMPORARY}'):
        if file.name.endswith((f'.pth{_TEMPORARY}', f'.{POINTER}{_TEMPORARY}')):
            file.unlink(missing_ok=True)


def require_checkpoint(path: str | Path) -> str:
    """Return the checkpoint file that `path` means.

    It is a checkpoint file; a work directory or its `last_checkpoint`, which both mean its newest checkpoint; or an
    address with a scheme (`https://...`), which is not looked at.
    """
    found = Path(path)
    if '://' in str(path):
        return str(path)
    if found.is_dir() or found.name == POINTER:
        folder = found if found.is_dir() else found.parent
        newest = newest_checkpoint(folder)
        if newest is None:
            raise SetupError(
                f'The folder {folder} holds no whole checkpoint of a training: name a .pth file or the work '
                'directory of a finished training.'
            )
        return newest
    if not found.is_file():
        raise SetupError(f'The checkpoint {path} does not exist{_others(found)}.')
    if found.suffix == '.py':
        raise SetupError(f'{path} is a config: name a checkpoint or a work directory.')
    return str(found)


def move_aside(folder: str | Path, begins: str | None, name: str) -> list[str]:
    """Move checkpoints that a training would mix with its own into a subfolder `name`; return their names.

    Args:
        begins: the file in this folder that the training continues from: those of earlier steps stay. None: a training
            from the start, so that none stays.
    """
    steps = {
        file: re.search(r'(?:epoch|iter)_(\d+)\.pth$', file.name)
        for file in Path(folder).glob('*.pth')
    }
    last = re.search(r'(\d+)\.pth$', begins) if begins else None
    if begins and last is None:  # of an interrupted training: the newest
        return []
    moved = []
    for file, step in sorted(steps.items()):
        ours = step or file.name == INTERRUPTED
        if ours and (last is None or step is None or int(step[1]) > int(last[1])):
            (file.parent / name).mkdir(exist_ok=True)
            file.replace(file.parent / name / file.name)
            moved.append(file.name)
    for result in _RESULTS if moved and begins is None else ():
        with contextlib.suppress(OSError):  # not there, or in the work directory beside the folder
            (Path(folder) / result).rename(Path(folder) / name / result)
    return moved


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the checkpoint of a work directory that was written last and is whole, or None.

    Warns about each damaged file that is passed over. `last_checkpoint` is only needed for checkpoints in another
    folder or on a server.
    """
    whole, untrusted = [], None
    pointed = _pointed(Path(work_dir))
    if '://' in pointed:
        return pointed
    for file in _candidates(Path(work_dir)) or _candidates(Path(pointed).parent):
        try:
            content = read_checkpoint_file(file, mmap=True)
        except UntrustedCheckpointError as error:
            untrusted = error
        except CheckpointError as error:
            warn(f'{file.name} is passed over: {error}')
        else:
            # Published weights have no message hub, without which mmengine does not resume.
            resumable = isinstance(content, dict) and 'message_hub' in content
            meta = content['meta'] if resumable else {}
            if isinstance(meta.get('iter'), int):
                whole.append(
                    (str(meta.get('time', '')), meta['iter'], file.stat().st_mtime_ns, file)
                )
    for *_, file in sorted(whole, reverse=True):
        if not (damaged := _damaged_part(file)):
            return str(file)
        warn(f'{file.name} is passed over: its part {damaged} is damaged')
    if untrusted is not None:
        raise untrusted
    return None


def _pointed(work_dir: Path) -> str:
    """Return what `last_checkpoint` names if it is on a server or in the folder that `out_dir` means for this run.

    Otherwise, return a path in the work directory.
    """
    try:
        text = (work_dir / POINTER).read_text(encoding='utf-8').strip()
        in_folder = Path(text).parent.name == work_dir.resolve().name and Path(text).is_file()
        if in_folder or re.fullmatch(r'[a-z0-9]+://\S+', text):
            return text
    except (OSError, ValueError):  # no such file, or not a path
        pass
    return str(work_dir / POINTER)


def _candidates(folder: Path) -> list[Path]:
    """Return the files that may be checkpoints to resume from: `best_*` have no state of the optimizer."""
    return [file for file in folder.glob('*.pth') if not file.name.startswith(('best_', '.'))]


def _damaged_part(path: Path) -> str | None:
    """Return the first part of a checkpoint whose check sum is wrong. Old files of torch have none."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except Exception as error:  # zipfile raises many kinds for damaged files
        return f'({error})'


def _others(path: Path) -> str:
    """Return the checkpoints beside `path` in words, for messages."""
    if not path.parent.is_dir():
        return f'; neither does the folder {path.parent}'
    names = sorted(file.name for file in path.parent.glob('*.pth'))
    if not names:
        return f'; {path.parent} holds no .pth file'
    return f'; {path.parent} holds {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}'
