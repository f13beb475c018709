"""Paths of checkpoints that a user types."""

from __future__ import annotations

from pathlib import Path

from swinv2_mm.engine.errors import SetupError

_POINTER = 'last_checkpoint'
"""Name of the text file in which mmengine keeps the path of the newest checkpoint of a work directory."""


def require_checkpoint(path: str | Path) -> str:
    """Return the checkpoint file that `path` means.

    Args:
        path: A checkpoint file; a work directory or its `last_checkpoint`, which both mean its newest checkpoint; or an
            address with a scheme (`https://...`), which is not looked at.

    Raises:
        SetupError: There is no such file.
    """
    found = Path(path)
    if '://' in str(path):
        return str(path)
    if found.is_dir() or found.name == _POINTER:
        folder = found if found.is_dir() else found.parent
        newest = newest_checkpoint(folder)
        if newest is None:
            raise SetupError(
                f'The folder {folder} holds no checkpoint (no file {_POINTER}): name a .pth file or the work '
                'directory of a finished training.'
            )
        return newest
    if not found.is_file():
        raise SetupError(f'The checkpoint {path} does not exist{_others(found)}.')
    return str(found)


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a work directory, or None if it has none.

    Raises:
        SetupError: The newest checkpoint has been deleted or moved.
    """
    pointer = Path(work_dir) / _POINTER
    if not pointer.is_file():
        return None
    named = Path(pointer.read_text(encoding='utf-8').strip())
    # The second path is for a work directory that was moved as a whole.
    for candidate in (named, pointer.parent / named.name):
        if candidate.is_file():
            return str(candidate)
    raise SetupError(
        f'{pointer} names the checkpoint {named}, which does not exist{_others(pointer)}: name the one to use.'
    )


def _others(path: Path) -> str:
    """Return the checkpoints beside `path` in words, for messages."""
    if not path.parent.is_dir():
        return f'; neither does the folder {path.parent}'
    names = sorted(file.name for file in path.parent.glob('*.pth'))
    if not names:
        return f'; {path.parent} holds no .pth file'
    return f'; {path.parent} holds {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}'
