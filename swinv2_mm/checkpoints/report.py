"""The report of a load, as one table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from swinv2_mm.checkpoints.errors import CheckpointError
from swinv2_mm.checkpoints.table import matches_any
from swinv2_mm.checkpoints.windows import Pair, SourceWindows, describe_windows

_SHOWN = 6


@dataclass
class LoadReport:
    """What was done with every tensor of the file and of the model, except that of windows.

    Attributes:
        source: The address of the checkpoint.
        layout: Its layout.
        prefix: The prefix of its names.
        windows: The windows it was trained at; `None` if unknown.
        model_windows: The windows of the model.
        position_windows: The windows that the model divides coordinates by after the load.
        loaded: Our names of what was loaded.
        dropped: Their names of what was left out on purpose, by reason.
        fresh: Our names of output norms and offset networks that the file lacks: they keep their initial values.
        missing: Our names of other tensors that the file lacks.
        unexpected: Our names, or theirs, of tensors without a place in the model, with the reason.
        mismatched: Our name, shape in the file and shape in the model.
        not_finite: Our names of tensors with NaN or infinite values.
        allowed: Our names from the last four lists that were allowed.
    """

    source: str
    layout: str
    prefix: str
    windows: SourceWindows | None = None
    model_windows: Sequence[Pair] = ()
    position_windows: Sequence[Pair] = ()
    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def drop(self, reason: str, key: str) -> None:
        """Add `key` to what is left out on purpose."""
        self.dropped.setdefault(reason, []).append(key)

    def allow(self, patterns: Sequence[str]) -> None:
        """Move problems whose names match to `allowed`.

        Args:
            patterns: Regular expressions for the beginning of names.

        Raises:
            CheckpointError: If a pattern matches nothing, or is not a regular expression.
            TypeError: If `patterns` is a single string.
        """
        if isinstance(patterns, str):
            raise TypeError(f'allow is {patterns!r}: expected a list of regular expressions')
        problems: tuple[list[str] | dict, ...]
        problems = (self.missing, self.unexpected, self.mismatched, self.not_finite)
        for pattern in patterns:
            try:
                names = [key for kind in problems for key in kind if matches_any([pattern], key)]
            except re.error as error:
                raise CheckpointError(
                    f'allow={pattern!r} is not a regular expression: {error}'
                ) from error
            if not names:
                raise CheckpointError(
                    f'{self.source}: allow={pattern!r} names nothing that is missing, unexpected, mismatched or not '
                    f'finite: remove it\n{self.table()}'
                )
            for kind in problems:
                for key in set(kind).intersection(names):
                    if isinstance(kind, dict):
                        del kind[key]
                    else:
                        kind.remove(key)
            self.allowed.extend(names)

    @property
    def problems(self) -> list[str]:
        """What is wrong, for messages."""
        found = {
            'missing': self.missing,
            'of another shape': self._shapes,
            'without a place in the model': list(self.unexpected),
            'NaN or infinite': self.not_finite,
        }
        return [f'{len(keys)} {what}: {_some(keys)}' for what, keys in found.items() if keys]

    @property
    def _shapes(self) -> list[str]:
        return [
            f'{key} {theirs} instead of {ours}' for key, (theirs, ours) in self.mismatched.items()
        ]

    def table(self) -> str:
        """Return the report as lines of text."""
        trained = str(self.windows) if self.windows else 'not stated'
        if self.model_windows:
            trained += f'; the model runs at {describe_windows(self.model_windows)}'
            if self.position_windows:
                trained += f', normalised by {describe_windows(self.position_windows)}'
        rows = {
            'layout': self.layout + (f', prefix {self.prefix!r}' if self.prefix else ''),
            'trained at window': trained,
            'loaded': f'{len(self.loaded)} tensors',
            **{f'dropped: {why}': _count(keys) for why, keys in self.dropped.items()},
            'newly initialised': _count(self.fresh),
            'missing': _count(self.missing),
            'unexpected': _count([f'{key} ({why})' for key, why in self.unexpected.items()]),
            'shape mismatch': _count(self._shapes),
            'NaN or infinite': _count(self.not_finite),
            'allowed by name': _count(self.allowed),
        }
        width = max(map(len, rows))
        lines = [f'  {name:<{width}}  {text}' for name, text in rows.items()]
        return '\n'.join([f'checkpoint {self.source}', *lines])


def _some(keys: Sequence[str]) -> str:
    return ', '.join(keys[:_SHOWN]) + (', ...' if len(keys) > _SHOWN else '')


def _count(keys: Sequence[str]) -> str:
    return f'{len(keys)} ({_some(keys)})' if keys else 'none'
