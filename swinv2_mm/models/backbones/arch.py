"""The published sizes of SwinV2, and checks of the options and inputs of a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.ops.window_attention import Pair


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raise a ValueError if an option is not an integer of at least `minimum`."""
    if not _is_int(value) or value < minimum:
        raise ValueError(f'{name} is {value!r}: expected an integer >= {minimum}')


def check_rate(name: str, value: float) -> None:
    """Raise a ValueError if an option is not a probability below 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f'{name} is {value!r}: expected a probability in [0, 1)')


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ValueError if an option is not one of the choices."""
    if value not in choices:
        raise ValueError(f'{name} is {value!r}: expected one of {", ".join(map(str, choices))}')


@dataclass(frozen=True)
class Arch:
    """Size of a backbone."""

    embed_dims: int  # channels of the first stage; every following stage has twice as many
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    extra_norm_every_n_blocks: int = 0  # of a stage; 0 for never

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
        check_integer('extra_norm_every_n_blocks', self.extra_norm_every_n_blocks, minimum=0)
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


# The sizes of timm's `swinv2_cr_*`, after the first version of the paper: the giant model has fewer blocks.
ARCHS_CR = {**ARCHS, 'giant': replace(ARCHS['giant'], depths=(2, 2, 42, 2))}


def resolve_arch(arch: str | Mapping[str, Any], archs: Mapping[str, Arch] = ARCHS) -> Arch:
    """Return the architecture of a name in `archs`, a first letter of one, or a dict with the fields of `Arch`."""
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
    return Arch(**{**arch, 'depths': tuple(arch['depths']), 'num_heads': tuple(arch['num_heads'])})


def per_stage_windows(value: Any, num_stages: int, name: str, minimum: int) -> list[Pair]:
    """Return one window per stage from an int, a pair `(height, width)`, or a list with one of these per stage.

    Two integers always are a pair. For a model with two stages, list two pairs: `[(8, 8), (4, 4)]`.
    """
    forms = f'an int, a pair (height, width), or one of these for each of the {num_stages} stages'
    entries = [value] * num_stages if _is_size(value) else value
    if not _is_sequence(entries):
        raise TypeError(f'{name} is {value!r}: expected {forms}')
    if len(entries) != num_stages:
        raise ValueError(f'{name} is {value!r}, {len(entries)} entries: expected {forms}')
    return [_as_pair(entry, name, forms, value, minimum) for entry in entries]


def check_resolution(value: Any, name: str) -> Pair:
    """Return an image size `(height, width)` in pixels; an int stands for a square."""
    return _as_pair(value, name, 'a pair (height, width) in pixels', value, 1)


def _is_size(value: Any) -> bool:
    return _is_int(value) or (_is_sequence(value) and len(value) == 2 and all(map(_is_int, value)))


def _as_pair(item: Any, name: str, forms: str, value: Any, minimum: int) -> Pair:
    if not _is_size(item):
        raise TypeError(f'{name} has the entry {item!r}: expected {forms}')
    height, width = (item, item) if _is_int(item) else item
    if min(height, width) < minimum:
        raise ValueError(f'{name} is {value!r}: expected numbers >= {minimum}')
    return height, width


def check_images(x: Tensor, in_channels: int) -> None:
    """Raise an error if the input of a backbone is not floating-point `(B, in_channels, H, W)`, every side >= 1."""
    if not isinstance(x, Tensor) or not torch.is_floating_point(x):
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f'expected a floating-point tensor of images, got {got}: normalise images with a data '
            'preprocessor first'
        )
    if x.dim() != 4:
        raise ValueError(
            f'expected images of shape (B, {in_channels}, H, W), got {tuple(x.shape)}: add the batch '
            'axis with x[None]'
        )
    if x.shape[1] != in_channels:
        raise ValueError(
            f'expected {in_channels} channels, got {x.shape[1]} in {tuple(x.shape)}: set '
            f'in_channels={x.shape[1]} or convert the images'
        )
    if 0 in x.shape:
        raise ValueError(f'got an empty batch of shape {tuple(x.shape)}: every side must be >= 1')


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Return `out_indices` as a tuple; raise an error if they are not different stages in increasing order."""
    if isinstance(out_indices, (int, str)):
        raise TypeError(f'out_indices is {out_indices!r}: expected a list of stages')
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted({*indices} & {*range(num_stages)}):
        raise ValueError(
            f'out_indices is {out_indices!r}: expected different stages in rising order, out of 0 to '
            f'{num_stages - 1}'
        )
    return indices


def drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return rates per stage and block that increase linearly from 0 to `rate`. Needs no tensors (meta device)."""
    steps = iter(range(sum(depths)))
    last = max(sum(depths) - 1, 1)
    return [[rate * next(steps) / last for _ in range(depth)] for depth in depths]


def layer_depth(name: str, depths: Sequence[int]) -> tuple[int, int]:
    """Return the depth of a parameter of a backbone, and the number of layers: patch embedding, blocks and the head.

    Downsampling belongs to the block before it, and an output norm to the last block of its stage.
    """
    layer = re.match(r'(?:layers\.|norm)(\d+)(?:\.blocks\.(\d+))?', name)
    if layer is None:
        return 0, sum(depths) + 2
    stage = int(layer[1])
    block = depths[stage] - 1 if layer[2] is None else int(layer[2])
    return 1 + sum(depths[:stage]) + block, sum(depths) + 2
