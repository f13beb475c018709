"""What is measured: sizes, windows, modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swinv2_mm.models.backbones.arch import ARCHS, Arch

NANO = Arch(32, (2, 2, 2, 2), (1, 2, 4, 8))
SIZES = {'nano': NANO, **ARCHS}
"""The published sizes, and one for trying things out."""

MODES = ('eval', 'train')
DTYPES = ('fp32', 'bf16', 'fp16')


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        input: Height and width of the image, in pixels.
        window: Side of the attention window, in tokens.
        mode: `'eval'` for a forward pass without gradients, `'train'` for forward and backward; or the name of
            a task whose training step is measured.
        arch: A key of `SIZES`.
        batch: Images per call.
        dtype: `'fp32'`, or the dtype of autocast.
        device: `'cpu'` or `'cuda'`.
    """

    input: tuple[int, int]
    window: int
    mode: str
    arch: str = 'tiny'
    batch: int = 1
    dtype: str = 'fp32'
    device: str = 'cpu'

    @property
    def size(self) -> str:
        """The input as `HxW`."""
        return f'{self.input[0]}x{self.input[1]}'

    def __str__(self) -> str:
        return f'{self.size} window {self.window} {self.mode}'

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Inverse of `to_dict`."""
        return cls(**{**data, 'input': tuple(data['input'])})


def parse_size(text: str) -> tuple[int, int]:
    """Reads `HxW`, in pixels; a single number is a square.

    Raises:
        ValueError: If it is neither.
    """
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f'{text!r} is no size: expected HEIGHTxWIDTH in pixels, such as 800x1344')
    return int(parts[0]), int(parts[-1])


def stage_maps(size: tuple[int, int], stages: int = 4) -> list[tuple[int, int]]:
    """Height and width of the map of every stage, in tokens, for an image of `size` pixels."""
    return [(-(-size[0] // s), -(-size[1] // s)) for s in (4 * 2**i for i in range(stages))]


def needs_padding(case: Case) -> bool:
    """Says whether some map is no multiple of the window, where libraries differ in what tokens see."""
    maps = stage_maps(case.input)
    return any(extent % case.window for extents in maps for extent in extents) or any(
        side % 32 for side in case.input
    )


def shrunk_windows(case: Case) -> list[int]:
    """The window of every stage for libraries whose window must not exceed the map."""
    return [min(case.window, *extents) for extents in stage_maps(case.input)]


def grid(
    inputs: Sequence[tuple[int, int]], windows: Sequence[int], modes: Sequence[str], **common: Any
) -> list[Case]:
    """All combinations."""
    return [Case(i, w, m, **common) for i in inputs for w in windows for m in modes]
