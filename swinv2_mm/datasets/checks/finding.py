"""What a check of the data finds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Severity = Literal['error', 'warning']
_NAMED = 3
"""Files or annotations that a sentence names; a finding has all of them."""
_BEARABLE = 0.1
"""Share of annotations or images that a library may drop before training suffers."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault of the data or of the config that reads them."""

    severity: Severity  # `'error'` if training makes no sense with it
    place: str  # the file, annotation or config key that it is about
    sentence: str
    remedy: str = ''
    kind: str = ''  # short name of the fault; default: the name of the check
    items: tuple[str, ...] = ()  # all files, or ids of all annotations, that have it

    def __str__(self) -> str:
        # A file name may hold bytes that are not UTF-8, which cannot be printed.
        text = f'{self.sentence} {self.remedy}'.strip()
        return text.encode('utf-8', 'backslashreplace').decode()


def error(place: object, sentence: str, remedy: str = '') -> Finding:
    """Return a finding that must stop the run."""
    return Finding('error', str(place), sentence, remedy)


@dataclass(frozen=True)
class Things:
    """Files, annotations or classes, of which some may have a fault."""

    place: str
    noun: str  # what they are, in the plural
    names: Sequence[Any]
    end: str = ''  # of a clause, before the names

    def find(
        self, severity: Severity | None, kind: str, mask: Any, fault: str, remedy: str = ''
    ) -> Iterator[Finding]:
        """Yield a finding if the mask selects some; `fault` is a clause after the noun.

        Without a severity, their share decides: a library drops them without a message.
        """
        rows = np.flatnonzero(mask).tolist()
        if not rows:
            return
        named = [self.names[row] for row in rows]
        items = [f'number {row}' if n in (None, '') else str(n) for row, n in zip(rows, named)]
        listed = ', '.join([items[0], *map(os.path.basename, items[1:_NAMED])])
        listed += ', ...' if len(items) > _NAMED else ''
        sentence = f'{len(items)} of {len(self.names)} {self.noun} {fault}{self.end}: {listed}.'
        many = len(items) > _BEARABLE * len(self.names)
        severity = severity or ('error' if many else 'warning')
        yield Finding(severity, self.place, sentence, remedy, kind, tuple(items))
