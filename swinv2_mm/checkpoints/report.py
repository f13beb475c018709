"""The report of a load, as one table."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.windows import Pair, SourceWindows, describe_windows

_SHOWN = 6


@dataclass
class LoadReport:
    """What was done with every tensor of the file and of the model, except that of windows.

    Names are ours, those of `dropped` and some of `unexpected` are theirs. The last dicts have details as values.
    """

    source: str  # the address of the checkpoint
    layout: str
    prefix: str  # of the names in the file
    windows: SourceWindows | None = None  # at which it was trained, if known
    model_windows: Sequence[Pair] = ()
    position_windows: Sequence[Pair] = ()  # by which the model divides coordinates after the load
    loaded: list[str] = field(default_factory=list)
    choice: str = ''  # which weights of several these are
    adapted: dict[str, str] = field(default_factory=dict)  # loaded after a change of shape
    dropped: dict[str, list[str]] = field(default_factory=dict)  # left out on purpose, by reason
    fresh: list[str] = field(default_factory=list)  # not in the file, and keep their initial values
    allowed: list[str] = field(default_factory=list)  # from the four below
    missing: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)  # without a place in the model
    mismatched: dict[str, str] = field(default_factory=dict)  # of another shape
    not_finite: dict[str, str] = field(default_factory=dict)  # with NaN or infinite values

    def drop(self, reason: str, key: str) -> None:
        """Add `key` to what is left out on purpose."""
        self.dropped.setdefault(reason, []).append(key)

    def allow(self, patterns: Sequence[str]) -> None:
        """Move problems whose names begin with a match of one of the regular expressions to `allowed`."""
        if isinstance(patterns, str):
            raise TypeError(f'allow is {patterns!r}: expected a list of regular expressions')
        for pattern in patterns:
            try:
                names = [
                    key for kind in self._wrong.values() for key in kind if re.match(pattern, key)
                ]
            except re.error as error:
                raise CheckpointError(
                    f'allow={pattern!r} is not a regular expression: {error}'
                ) from error
            if not names:
                raise CheckpointError(
                    f'{self.source}: allow={pattern!r} names nothing that is missing, unexpected, mismatched or not '
                    f'finite: remove it\n{self.table()}'
                )
            for kind in self._wrong.values():
                for key in names:
                    kind.pop(key, None)
            self.allowed.extend(names)

    @property
    def _wrong(self) -> dict[str, dict[str, str]]:
        return {
            'missing': self.missing,
            'unexpected': self.unexpected,
            'shape mismatch': self.mismatched,
            'NaN or infinite': self.not_finite,
        }

    @property
    def problems(self) -> list[str]:
        """What is wrong, for messages."""
        return [f'{what}: {_count(keys)}' for what, keys in self._wrong.items() if keys]

    def table(self) -> str:
        """Return the report as lines of text."""
        trained = str(self.windows) if self.windows else 'not stated in the file'
        if self.model_windows:
            trained += f'; the model runs at {describe_windows(self.model_windows)}'
            if self.position_windows:
                trained += f', normalised by {describe_windows(self.position_windows)}'
        rows = {
            'layout': self.layout + (f', prefix {self.prefix!r}' if self.prefix else ''),
            **({'weights': self.choice} if self.choice else {}),
            'trained at window': trained,
            'loaded': f'{len(self.loaded)} tensors',
            **({'adapted': _count(self.adapted)} if self.adapted else {}),
            **{f'dropped: {why}': _count(keys) for why, keys in self.dropped.items()},
            'newly initialised': _count(self.fresh),
            **{what: _count(keys) for what, keys in self._wrong.items()},
            'allowed by name': _count(self.allowed),
        }
        width = max(map(len, rows))
        lines = [f'  {name:<{width}}  {text}' for name, text in rows.items()]
        return '\n'.join([f'checkpoint {self.source}', *lines])


def _count(keys: Collection[str]) -> str:
    if not keys:
        return 'none'
    details = keys if isinstance(keys, dict) else dict.fromkeys(keys, '')
    shown = [f'{key} ({why})' if why else key for key, why in list(details.items())[:_SHOWN]]
    return f'{len(keys)} ({", ".join(shown)}{", ..." if len(keys) > _SHOWN else ""})'
