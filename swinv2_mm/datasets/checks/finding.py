"""What a check of the data finds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal['error', 'warning']
_NAMED = 3
"""Files or annotations that a sentence names; a finding has all of them."""
_BEARABLE = 0.1
"""Share of annotations or images that a library may drop before training suffers."""


@dataclass(frozen=True)
class Finding:
    """One kind of fault of the data or of the config that reads them.

    Attributes:
        severity: `'error'` if training makes no sense with it, else `'warning'`.
        place: The file, annotation or config key that it is about.
        sentence: What is wrong.
        remedy: What to do about it; may be empty.
        kind: Short name of the fault; default: the name of the check.
        items: All files, or ids of all annotations, that have it; empty if `place` says it.
    """

    severity: Severity
    place: str
    sentence: str
    remedy: str = ''
    kind: str = ''
    items: tuple[str, ...] = ()

    def __str__(self) -> str:
        # A file name may hold bytes that are not UTF-8, which cannot be printed.
        text = f'{self.sentence} {self.remedy}'.strip()
        return text.encode('utf-8', 'backslashreplace').decode()


def error(place: object, sentence: str, remedy: str = '') -> Finding:
    """Return a finding that must stop the run."""
    return Finding('error', str(place), sentence, remedy)


def of_many(
    severity: Severity,
    kind: str,
    place: object,
    items: Sequence[object],
    total: int,
    noun: str,
    fault: str,
    remedy: str = '',
) -> Finding:
    """Return a finding about some of `total` things.

    Args:
        items: Names of those with the fault.
        noun: What they are, in the plural.
        fault: What is wrong with them, as a clause after the noun.
    """
    names = tuple(map(str, items))
    shown = [*names[:1], *map(os.path.basename, names[1:_NAMED])]
    listed = ', '.join(shown) + (', ...' if len(names) > _NAMED else '')
    sentence = f'{len(names)} of {total} {noun} {fault}: {listed}.'
    return Finding(severity, str(place), sentence, remedy, kind, names)


def if_many(count: int, total: int) -> Severity:
    """Return the severity of `count` of `total` things that a library drops without a message."""
    return 'error' if count > _BEARABLE * total else 'warning'
