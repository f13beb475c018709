"""Compiled kernels on disk, so that the next process does not compile them again.

They are in `swinv2_mm_kernels` of `torch.hub.get_dir()`, one file per kernel, processor and version of LLVM. Without a
folder to write to, every process compiles its kernels.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path

import torch

MOST_FILES = 64
_DIGEST_SIZE = hashlib.sha256().digest_size


def _folder() -> Path | None:
    """Return the folder; `None` if it cannot be used, or if other users can write to it: it contains machine code."""
    folder = Path(torch.hub.get_dir()) / 'swinv2_mm_kernels'
    if not folder.is_absolute():  # no home directory
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError:
        return None
    is_ours = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if is_ours else None


def load(key: str) -> bytes | None:
    """Return the machine code that was stored; `None` if there is none, or the file is damaged or another kernel's."""
    folder = _folder()
    if folder is None:
        return None
    try:
        content = (folder / key).read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    return code if _digest(key, code) == digest else None


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def store(key: str, code: bytes) -> None:
    """Store machine code, and delete the oldest files beyond `MOST_FILES`; do nothing if that is not possible."""
    folder = _folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in files[MOST_FILES - 1 :]:
            old.unlink(missing_ok=True)
        part = folder / f'.{key}.{os.getpid()}.{threading.get_ident()}'
        try:
            part.write_bytes(_digest(key, code) + code)
            os.replace(part, folder / key)
        finally:
            part.unlink(missing_ok=True)
