"""Cases of the benchmarks: sizes, windows, modes."""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_mm.models.backbones.arch import ARCHS, Arch

SIZES = {'nano': Arch(32, (2, 2, 2, 2), (1, 2, 4, 8)), **ARCHS}
"""The published sizes, and a tiny one for tests."""

MODES = ('eval', 'train')
DTYPES = ('fp32', 'bf16', 'fp16')


@dataclass(frozen=True)
class Case:
    """A configuration to measure.

    Attributes:
        input: Height and width of the image, in pixels.
        window: Side of the attention window, in tokens.
        mode: `'eval'` for a forward pass without gradients, `'train'` for a training step.
        arch: A key of `SIZES`.
        batch: Images per call.
        dtype: `'fp32'`, or the dtype of autocast.
        device: `'cpu'` or `'cuda'`.
        task: `'backbone'`, `'attention'`, or a key of `models.TASKS`.
    """

    input: tuple[int, int]
    window: int
    mode: str
    arch: str = 'tiny'
    batch: int = 1
    dtype: str = 'fp32'
    device: str = 'cpu'
    task: str = 'backbone'

    @property
    def size(self) -> str:
        """The input as `HxW`."""
        return f'{self.input[0]}x{self.input[1]}'

    def __str__(self) -> str:
        return f'{self.task} {self.arch} {self.size} window {self.window} {self.dtype} {self.mode}'


def parse_size(text: str) -> tuple[int, int]:
    """Parse `HxW` in pixels, or a single number for a square.

    Raises:
        ValueError: If the text is neither.
    """
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(
            f'{text!r} is not a size: expected HEIGHTxWIDTH in pixels, such as 800x1344'
        )
    return int(parts[0]), int(parts[-1])
