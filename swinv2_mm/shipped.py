"""Where the configs lie that come with this package, from a checkout as from a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder() -> Path:
    """Return the folder with `configs` and `tools`."""
    installed = _PACKAGE / '.mim'
    return installed if installed.is_dir() else _PACKAGE.parent


def config(name: str) -> str:
    """Return the path of a shipped config, e.g. `'_base_/models/upernet_swinv2.py'`.

    Raises:
        FileNotFoundError: There is no such config.
    """
    path = folder() / 'configs' / name
    if not path.is_file():
        raise FileNotFoundError(f'swinv2_mm has no config {name} in {path.parent}')
    return str(path)


def configs(*names: str) -> list[str]:
    """Return the paths of several shipped configs."""
    return [config(name) for name in names]
