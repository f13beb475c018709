"""What a check of the data finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fault of the data or of the config that reads them.

    Attributes:
        severity: `'error'` if training makes no sense with it, else `'warning'`.
        place: The file, annotation or config key that it is about.
        sentence: What is wrong.
        remedy: What to do about it; may be empty.
    """

    severity: Literal['error', 'warning']
    place: str
    sentence: str
    remedy: str = ''

    def __str__(self) -> str:
        return f'{self.sentence} {self.remedy}'.strip()


def error(place: object, sentence: str, remedy: str = '') -> Finding:
    """Return a finding that must stop the run."""
    return Finding('error', str(place), sentence, remedy)
