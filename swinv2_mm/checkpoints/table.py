"""How a layout table is written, and how tensors are converted by it.

A table has one row for each group of tensors: our names on the left, theirs on the right. Rows are read in both
directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Names = tuple[str | None, ...]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of a layout table.

    A name is that of a tensor, or of a module for all tensors in it. It may contain `{s}` for the stage, `{b}` for the
    block, `{next}` for the next stage, and `{body}` and `{down}` for the positions of a stage's blocks and of the
    downsampling behind them in a flat sequence that begins with the patch embedding.

    Both sides hold the same numbers, concatenated along the first axis: with one name on the left and three on the
    right, theirs are the three parts of ours. `None` is a part that is all zeros and not stored.
    """

    ours: Names
    theirs: Names
    change: tuple[Change, Change] | None = None  # from the numbers of theirs to ours and back


def rows(
    names: Iterable[str],
    renamed: Mapping[str, str] = {},
    changes: Mapping[str, tuple[Change, Change]] = {},
) -> tuple[Row, ...]:
    """Return a row for each of our names; theirs has the parts in `renamed` replaced, in this order."""
    table = []
    for ours in names:
        theirs = ours
        for old, new in renamed.items():
            theirs = theirs.replace(old, new)
        table.append(Row((ours,), (theirs,), changes.get(ours)))
    return tuple(table)


@dataclass(frozen=True)
class Layout:
    """The way a library names and arranges the weights of a backbone."""

    name: str
    rows: tuple[Row, ...]  # of two rows with the same name, the first one counts
    otherwise: tuple[Row, ...] = ()  # for models with another tensor in place of one in `rows`
    present: tuple[str, ...] = ()  # regular expressions that each match a name of such a file
    container: str | None = None  # the key under which the library's files keep the weights
    family: str = 'v2'  # the `checkpoint_family` of the backbones these weights are for

    def their_name(self, ours: str) -> str:
        """Return their name of something that has a row of its own."""
        return next(str(row.theirs[0]) for row in self.rows if row.ours == (ours,))

    def matches(self, names: Collection[str]) -> bool:
        """Return whether `names` are those of a file in this layout."""
        return all(any(re.search(mark, name) for name in names) for mark in self.present)


@dataclass(frozen=True)
class Recipe:
    """How to make one tensor from tensors of the other layout."""

    sources: Names  # to concatenate along the first axis; `None` for zeros
    index: int  # the part of the result that the tensor is
    num_parts: int  # number of equal parts that the result is cut into
    change: Change | None

    @property
    def names(self) -> list[str]:
        """The tensors needed."""
        return [name for name in self.sources if name is not None]

    def make(self, state: Mapping[str, Tensor]) -> Tensor:
        """Make the tensor from those of `state`; raise ValueError if their shapes do not allow it."""
        joined = like = state[self.names[0]]
        try:
            if len(self.sources) > 1:
                zeros = torch.zeros_like(like)
                joined = torch.cat(
                    [zeros if name is None else state[name] for name in self.sources]
                )
            if self.num_parts > 1:
                joined = joined.unflatten(0, (self.num_parts, -1))[self.index]
            return joined if self.change is None else self.change(joined)
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f'{", ".join(self.names)} of shape {tuple(like.shape)}: {error}'
            ) from error


def translate(
    keys: Iterable[str], layout: Layout, to_ours: bool, wanted: Collection[str] = ()
) -> tuple[dict[str, Recipe], dict[str, list[str]]]:
    """Translate names of a layout `to_ours`, or ours to those of the layout.

    The names `wanted` by the model choose among the rows `otherwise`.

    Returns:
        The recipes by name in the other layout; and the names without one, with those that their row lacks.
    """
    known = dict.fromkeys(keys)
    found = _expand(layout, known, to_ours, wanted)
    recipes, unknown = {}, {}
    for key in known:
        module, dot, last = (key, '', '') if key in found else key.rpartition('.')
        leaf = dot + last
        sources, targets, change = found.get(module, ((), (), None))
        names = tuple(name and name + leaf for name in sources)
        lacking = [name for name in names if name is not None and name not in known]
        if lacking or not names:
            unknown[key] = lacking
            continue
        for index, target in enumerate(targets):
            if target is not None:
                recipes[target + leaf] = Recipe(names, index, len(targets), change)
    return recipes, unknown


def _expand(
    layout: Layout, keys: Iterable[str], to_ours: bool, wanted: Collection[str]
) -> dict[str, tuple[Names, Names, Change | None]]:
    """Write the rows out for the stages and blocks that occur; find them by the names on the side of `keys`."""
    places = {(0, 0)}
    for key in keys:
        # The first number may be any of those of `fill`. Not all up to the largest: there may be a `head.9999.weight`.
        numbers = [int(number) for number in re.findall(r'(?<!\d)\d{1,6}(?!\d)', key)[:2]]
        first, second = (*numbers, 0, 0)[:2]
        stages = (first, first - 1, (first - 1) // 2, (first - 2) // 2)
        places.update((stage, second) for stage in stages if stage >= 0)
    found = {}
    for row in (*layout.rows, *layout.otherwise):
        sides = (row.theirs, row.ours) if to_ours else (row.ours, row.theirs)
        change = row.change and row.change[0 if to_ours else 1]
        for place in places:
            sources, targets = (
                tuple(name and fill(name, *place) for name in side) for side in sides
            )
            for name in sources:
                if name is not None and (name not in found or any(to in wanted for to in targets)):
                    found[name] = (sources, targets, change)
    return found


def fill(name: str, stage: int = 0, block: int = 0) -> str:
    """Put numbers into a name of a table."""
    return name.format(s=stage, b=block, next=stage + 1, body=2 * stage + 1, down=2 * stage + 2)
