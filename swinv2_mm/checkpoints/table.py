"""How a layout table is written, and what carries tensors from one side of it to the other.

A table has one row for each group of tensors: our names on the left, theirs on the right. Every row reads in both
directions, so the way back is never written down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

NAMES = str | tuple[str | None, ...]


@dataclass(frozen=True)
class Change:
    """How the numbers of a tensor of ours differ from those of theirs.

    Attributes:
        to_ours: Makes ours of theirs.
        to_theirs: Makes theirs of ours.
    """

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of a layout table.

    A name is that of a tensor or of a module, which stands for all tensors in it. It may contain `{s}` for the
    stage, `{b}` for the block, `{next}` for the stage after, and `{body}` and `{down}` for the positions of a stage's
    blocks and of the downsampling behind them in a flat sequence that begins with the patch embedding.

    Both sides hold the same numbers, joined along the first axis: with one name on the left and three on the right,
    theirs are the three parts of ours. None stands for a part that is all zeros and not stored.

    Attributes:
        ours: Our name, or a tuple of names.
        theirs: Their name, or a tuple of names.
        columns: How the columns (the last axis) of a matrix or vector are ordered in ours and in theirs, as two words
            whose letters name the axes from slow to fast; `h` and `w` have two entries, `c` the rest.
        change: How the numbers differ, if they do.
    """

    ours: NAMES
    theirs: NAMES
    columns: tuple[str, str] | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Layout:
    """The way a library names and arranges the weights of a backbone.

    Attributes:
        name: What the layout is called on the command line and in reports.
        rows: The table.
        otherwise: Rows for models that have another tensor in place of the one in `rows`: they read the same tensor of
            theirs into it, and write it where `rows` say nothing.
        present: Regular expressions that each match at least one name of such a file.
        absent: Regular expressions that match none.
        heads: Names, as regular expressions, of what such a file holds beyond the backbone.
        container: Key under which the library's files keep the weights; None if they are at the top.
        family: Which backbones these weights are for.
        writable: Whether files can be converted to this layout.
    """

    name: str
    rows: tuple[Row, ...]
    otherwise: tuple[Row, ...] = ()
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    container: str | None = None
    family: str = 'v2'
    writable: bool = True

    def their_name(self, ours: str) -> str:
        """Returns their name of something that a row of its own renames.

        Raises:
            KeyError: There is no such row.
        """
        for row in self.rows:
            if row.ours == ours and isinstance(row.theirs, str):
                return row.theirs
        raise KeyError(ours)


@dataclass(frozen=True)
class Recipe:
    """How to make one tensor from tensors of the other layout.

    Attributes:
        sources: Names to join along the first axis; None for zeros.
        index: Which of the parts of the join the tensor is.
        num_parts: Into how many equal parts the join is cut.
        columns: As in `Row`, in the order from, to.
        change: What is done to the result.
    """

    sources: tuple[str | None, ...]
    index: int = 0
    num_parts: int = 1
    columns: tuple[str, str] | None = None
    change: Callable[[Tensor], Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors needed."""
        return tuple(name for name in self.sources if name is not None)

    def make(self, get: Callable[[str], Tensor]) -> Tensor:
        """Makes the tensor.

        Args:
            get: Returns a source by its name.

        Raises:
            ValueError: The join cannot be cut into equal parts or its columns not be reordered.
        """
        parts = [None if name is None else get(name) for name in self.sources]
        like = next(part for part in parts if part is not None)
        filled = [torch.zeros_like(like) if part is None else part for part in parts]
        joined = filled[0] if len(filled) == 1 else torch.cat(filled)
        if self.num_parts > 1:
            if joined.dim() == 0 or joined.shape[0] % self.num_parts:
                raise ValueError(
                    f'{", ".join(self.names)} of shape {tuple(joined.shape)} should consist of '
                    f'{self.num_parts} equal parts'
                )
            joined = joined.chunk(self.num_parts)[self.index]
        if self.columns is not None:
            joined = _reorder(joined, self.columns, self.names)
        return joined if self.change is None else self.change(joined)


@dataclass
class Translation:
    """What a table makes of the names of a file.

    Attributes:
        recipes: For each name of the other layout, how to make it.
        unknown: Names that no row mentions.
        incomplete: Names that are of no use since another part of the same row is lacking, with the names lacking.
    """

    recipes: dict[str, Recipe] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    incomplete: dict[str, tuple[str, ...]] = field(default_factory=dict)


def translate(
    keys: Iterable[str], layout: Layout, to_ours: bool, wanted: Collection[str] = ()
) -> Translation:
    """Reads a table in one direction.

    Args:
        keys: Names of tensors, of `layout` or ours.
        layout: The table.
        to_ours: Whether `keys` are theirs and ours are wanted, or the other way round.
        wanted: Names of the model, which choose among the rows `otherwise`.
    """
    keys = list(keys)
    known = set(keys)
    rows = _expand(layout, keys, to_ours, wanted)
    result = Translation()
    for key in keys:
        row, leaf = rows.get(key), ''
        if row is None:
            module, _, last = key.rpartition('.')
            row, leaf = rows.get(module), f'.{last}'
        if row is None:
            result.unknown.append(key)
            continue
        sources, targets, columns, change = row
        names = tuple(None if name is None else name + leaf for name in sources)
        lacking = tuple(name for name in names if name is not None and name not in known)
        if lacking:
            result.incomplete[key] = lacking
            continue
        for index, target in enumerate(targets):
            if target is not None:
                result.recipes[target + leaf] = Recipe(names, index, len(targets), columns, change)
    return result


_ConcreteRow = tuple[
    tuple[str | None, ...],
    tuple[str | None, ...],
    tuple[str, str] | None,
    Callable[[Tensor], Tensor] | None,
]


def _expand(
    layout: Layout, keys: list[str], to_ours: bool, wanted: Collection[str]
) -> dict[str, _ConcreteRow]:
    """Writes the rows out for the stages and blocks that occur; finds them by the names on the side of `keys`."""
    places = _places(keys)
    found: dict[str, _ConcreteRow] = {}
    for row in (*layout.rows, *layout.otherwise):
        names = _as_tuple(row.ours), _as_tuple(row.theirs)
        columns = row.columns
        change = None if row.change is None else row.change.to_theirs
        if to_ours:
            names = names[1], names[0]
            columns = columns and (columns[1], columns[0])
            change = None if row.change is None else row.change.to_ours
        for stage, block in places:
            sources, targets = (
                tuple(name and fill(name, stage, block) for name in side) for side in names
            )
            for name in sources:
                if name is not None and (name not in found or any(to in wanted for to in targets)):
                    found[name] = (sources, targets, columns, change)
    return found


def _places(keys: Iterable[str]) -> set[tuple[int, int]]:
    """Returns every stage and block that a name may be of: its first number, as any of the numbers of `fill`; its next.

    Not all numbers up to the largest: a file may hold `head.9999.weight`.
    """
    places = {(0, 0)}
    for key in keys:
        first, second, *_ = [
            *(int(number) for number in re.findall(r'(?<!\d)\d{1,6}(?!\d)', key)[:2]),
            0,
            0,
        ]
        stages = (first, first - 1, (first - 1) // 2, (first - 2) // 2)
        places.update((stage, second) for stage in stages if stage >= 0)
    return places


def fill(name: str, stage: int = 0, block: int = 0) -> str:
    """Puts numbers into a name of a table."""
    return name.format(s=stage, b=block, next=stage + 1, body=2 * stage + 1, down=2 * stage + 2)


def _as_tuple(names: NAMES) -> tuple[str | None, ...]:
    return (names,) if isinstance(names, str) else names


def _reorder(matrix: Tensor, columns: tuple[str, str], names: tuple[str, ...]) -> Tensor:
    source, target = columns
    sizes = {'h': 2, 'w': 2, 'c': matrix.shape[-1] // 4}
    if matrix.dim() not in (1, 2) or matrix.shape[-1] % 4:
        raise ValueError(
            f'{", ".join(names)} of shape {tuple(matrix.shape)} should be a matrix whose columns belong to 2 x 2 tokens'
        )
    rows = range(matrix.dim() - 1)
    split = matrix.unflatten(-1, [sizes[axis] for axis in source])
    return split.permute(*rows, *(len(rows) + source.index(axis) for axis in target)).flatten(-3)


def matches_any(patterns: Iterable[str], key: str) -> bool:
    """Says whether one of some regular expressions matches the beginning of `key`."""
    return any(re.match(pattern, key) for pattern in patterns)


def matches_layout(layout: Layout, state: Mapping[str, object]) -> bool:
    """Says whether the names of `state` are those of a layout."""
    return all(any(re.search(mark, key) for key in state) for mark in layout.present) and not any(
        re.search(mark, key) for mark in layout.absent for key in state
    )
