"""The published sizes of SwinV2, and reading the options that may differ from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Pair = tuple[int, int]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


@dataclass(frozen=True)
class Arch:
    """Size of a backbone.

    Attributes:
        embed_dims: Channels of the first stage; every following stage has twice as many.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        extra_norm_every_n_blocks: Every how many blocks of a stage one ends with an extra norm; 0 for never.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    extra_norm_every_n_blocks: int = 0

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(
                f'depths {self.depths} and num_heads {self.num_heads} must have one entry per stage each'
            )
        sizes = (self.embed_dims, *self.depths, *self.num_heads)
        if any(not _is_int(size) or size < 1 for size in sizes):
            raise ValueError(
                f'embed_dims {self.embed_dims}, depths {self.depths} and num_heads {self.num_heads} '
                'must be integers >= 1'
            )
        every = self.extra_norm_every_n_blocks
        if not _is_int(every) or every < 0:
            raise ValueError(f'extra_norm_every_n_blocks is {every!r}: expected an integer >= 0')
        for stage, (dim, heads) in enumerate(zip(self.dims, self.num_heads)):
            if dim % heads:
                raise ValueError(
                    f'stage {stage} has {dim} channels (embed_dims {self.embed_dims} * 2**{stage}), '
                    f'which {heads} heads do not divide: change embed_dims or num_heads'
                )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels per stage."""
        return tuple(self.embed_dims * 2**stage for stage in range(len(self.depths)))


# Tables 1 and 2 and appendix A1 of the paper (arXiv 2111.09883).
ARCHS = {
    'tiny': Arch(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    'small': Arch(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'base': Arch(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    'large': Arch(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    'huge': Arch(352, (2, 2, 18, 2), (11, 22, 44, 88), extra_norm_every_n_blocks=6),
    'giant': Arch(512, (2, 2, 42, 4), (16, 32, 64, 128), extra_norm_every_n_blocks=6),
}


# As timm's `swinv2_cr_*`, which follow the paper's first version: another number of blocks in the giant model.
ARCHS_CR = {**ARCHS, 'giant': replace(ARCHS['giant'], depths=(2, 2, 42, 2))}


def resolve_arch(arch: str | Mapping[str, Any], archs: Mapping[str, Arch] = ARCHS) -> Arch:
    """Look an architecture up by name or first letter, or read it from a dict with the fields of `Arch`.

    Args:
        arch: The name, letter or dict.
        archs: The sizes that have names.

    Raises:
        TypeError: If `arch` is neither a string nor a dict.
        ValueError: If the name is unknown, a field is missing, unknown or out of range.
    """
    if isinstance(arch, str):
        by_letter = {name[0]: name for name in archs}
        name = by_letter.get(arch.lower(), arch.lower())
        if name not in archs:
            raise ValueError(
                f'unknown arch {arch!r}: choose one of {", ".join(archs)}, its first letter, or a dict '
                'with embed_dims, depths and num_heads'
            )
        return archs[name]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a name or a dict, got {type(arch).__name__}: {arch!r}')
    required = {'embed_dims', 'depths', 'num_heads'}
    missing = required - set(arch)
    unknown = set(arch) - required - {'extra_norm_every_n_blocks'}
    if missing or unknown:
        raise ValueError(
            f'arch dict {dict(arch)} lacks {sorted(missing)} and has unknown keys {sorted(unknown)}: expected '
            'embed_dims, depths, num_heads and optionally extra_norm_every_n_blocks'
        )
    for key in ('depths', 'num_heads'):
        if not _is_sequence(arch[key]):
            raise TypeError(f'{key} of an arch dict must be a list, got {arch[key]!r}')
    return Arch(
        arch['embed_dims'],
        tuple(arch['depths']),
        tuple(arch['num_heads']),
        arch.get('extra_norm_every_n_blocks', 0),
    )


def per_stage_windows(value: Any, num_stages: int, name: str, minimum: int) -> list[Pair]:
    """Read a window option: an int, a pair `(height, width)`, or one of these per stage.

    Two bare integers are always a pair; a model of two stages lists pairs, `[(8, 8), (4, 4)]`.

    Args:
        value: What the user wrote.
        num_stages: Number of stages.
        name: Name of the option, for messages.
        minimum: Smallest number allowed.

    Returns:
        One `(height, width)` per stage.

    Raises:
        TypeError: If the value is of another form.
        ValueError: If a number is below `minimum` or there are not as many entries as stages.
    """
    forms = f'an int, a pair (height, width), or one of these for each of the {num_stages} stages'
    if _is_int(value):
        pairs = [(value, value)] * num_stages
    elif not _is_sequence(value):
        raise TypeError(f'{name} is {value!r}: expected {forms}')
    elif len(value) == 2 and all(_is_int(item) for item in value):
        pairs = [(value[0], value[1])] * num_stages
    elif len(value) != num_stages:
        raise ValueError(f'{name} is {value!r}, {len(value)} entries: expected {forms}')
    else:
        pairs = [_as_pair(item, name, forms) for item in value]
    for pair in pairs:
        if min(pair) < minimum:
            raise ValueError(f'{name} is {value!r}: expected numbers >= {minimum}')
    return pairs


def check_resolution(value: Any, name: str) -> Pair:
    """Read an image size `(height, width)` in pixels, or an int for a square.

    Raises:
        TypeError: If it is of another form.
        ValueError: If a side is below 1.
    """
    pair = _as_pair(value, name, 'a pair (height, width) in pixels')
    if min(pair) < 1:
        raise ValueError(f'{name} is {value!r}: expected numbers >= 1')
    return pair


def _as_pair(item: Any, name: str, forms: str) -> Pair:
    if _is_int(item):
        return item, item
    if _is_sequence(item) and len(item) == 2 and all(_is_int(number) for number in item):
        return item[0], item[1]
    raise TypeError(f'{name} has the entry {item!r}: expected {forms}')
