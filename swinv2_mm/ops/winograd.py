"""3 x 3 convolutions by Winograd's minimal filtering F(4 x 4, 3 x 3), with a quarter of the multiplications.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. Tiles of 6 x 6 pixels and the
kernels are transformed, multiplied channel by channel as 36 matrix products, and transformed back to tiles of 4 x 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.ops.execution import differentiates_plainly, takes_winograd
from swinv2_mm.ops.llvm import runtime

# Polynomial interpolation at 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_OUTPUT_GRADIENT = tuple(zip(*_OUTPUT))
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_TILES = 128  # at a time: as many as stay in the cache
_BAND = 2**22  # numbers of a map that are copied to channels-last memory at a time

Matrix = tuple[tuple[float, ...], ...]


def _both_sides(matrix: Any) -> Tensor:
    """Return the matrix that transforms flat squares as `matrix` does on both of their sides."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


_KERNELS = _both_sides(_KERNEL)  # (36, 9)


def _bands(x: Tensor, channels: int) -> Iterator[tuple[slice, slice, slice, int]]:
    """Split maps (B, C, H, W) into bands: several maps, or some rows of one.

    Yield the images and rows of a band, the rows that its tiles read, and how many tiles of these rows precede its own.
    """
    images, _, height, width = x.shape
    columns, rows = -(-width // 4), max(1, _BAND // (4 * width * channels))
    if 4 * rows >= height:
        together = max(1, _BAND // (height * width * channels))
        for first in range(0, images, together):
            yield slice(first, first + together), slice(height), slice(height), 0
        return
    for image in range(images):
        for top in range(0, height, 4 * rows):
            bottom, above = min(top + 4 * rows, height), 4 * (top > 0)
            around = slice(top - above, min(bottom + 1, height))
            yield slice(image, image + 1), slice(top, bottom), around, above // 4 * columns


def _strip(maps: Tensor, images: slice, rows: slice, is_output: bool = False) -> Tensor:
    """Return rows of maps (B, C, H, W) as contiguous (b, h, W, C): a copy if necessary, or memory if `is_output`."""
    part = maps[images, :, rows].permute(0, 2, 3, 1)
    if part.is_contiguous():
        return part
    strip = torch.empty(part.shape, dtype=part.dtype, device='cpu')
    if not is_output:
        _transpose(maps[images, :, rows].flatten(2), strip.flatten(1, 2))
    return strip


def _chunks(strip: Tensor, memory: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the first of at most `_TILES` tiles of a strip, and memory for them, each (36, tiles, C)."""
    total = len(strip) * -(-strip.shape[1] // 4) * -(-strip.shape[2] // 4)
    for start in range(0, total, _TILES):
        count = min(_TILES, total - start)
        yield start, [flat[: 36 * count].view(36, count, -1) for flat in memory]


def _memory(x: Tensor, *channels: int) -> list[Tensor]:
    """Return memory for the transformed tiles of maps (B, C, H, W); see `_chunks`."""
    tiles = len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    return [x.new_empty(36 * min(tiles, _TILES), number) for number in channels]


def _transform(
    matrix: Matrix,
    strip: Tensor,
    first: int,
    tiles: Tensor,
    outside: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Transform tiles of a strip; with a bias, transform to tiles of it. See `winograd_kernel.ARGUMENTS`."""
    from swinv2_mm.ops.llvm import winograd_kernel

    offset = -1 if matrix is _INPUT else 0
    kernel = winograd_kernel.transform(matrix, offset, bias is not None, runtime.lanes())
    counter = torch.zeros(1, dtype=torch.int64, device='cpu')
    tensors = strip, tiles, outside, outside if bias is None else bias, counter
    height, width, channels = strip.shape[1:]
    count = tiles.shape[1]
    numbers = first, count, -(-height // 4), -(-width // 4), height, width, channels
    threads = min(torch.get_num_threads(), -(-count // winograd_kernel.TILES))
    runtime.run(kernel, [*(x.data_ptr() for x in tensors), *numbers], threads)


def _transpose(x: Tensor, out: Tensor) -> None:
    """Copy `(B, rows, columns)` to `(B, columns, rows)`; the last axes are contiguous."""
    from swinv2_mm.ops.llvm import winograd_kernel

    if min(x.shape[1:]) < runtime.lanes():
        out.copy_(x.transpose(1, 2))
        return
    counter = torch.zeros(1, dtype=torch.int64, device='cpu')
    arguments = [*(tensor.data_ptr() for tensor in (x, out, counter)), *x.shape]
    arguments += [*x.stride()[:2], *out.stride()[:2]]
    runtime.run(winograd_kernel.transpose(runtime.lanes()), arguments, torch.get_num_threads())


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _in_memory_order(x: Tensor) -> Tensor:
    return x if _is_channels_last(x) else x.contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C_in, H, W) with (C_out, C_in, 3, 3), without gradients; the layout of memory is that of `x`."""
    x = _in_memory_order(x)
    outputs, inputs = weight.shape[:2]
    kernels = (_KERNELS @ weight.reshape(-1, 9).t()).view(36, outputs, inputs).transpose(1, 2)
    layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    shape = len(x), outputs, *x.shape[2:]
    y = torch.empty(shape, dtype=x.dtype, memory_format=layout, device='cpu')
    bias = x.new_zeros(outputs) if bias is None else bias.contiguous()
    zeros, dropped = x.new_zeros(inputs), x.new_empty(outputs)
    memory = _memory(x, inputs, outputs)
    for images, rows, around, first in _bands(x, max(inputs, outputs)):
        of_map, to_map = _strip(x, images, around), _strip(y, images, rows, is_output=True)
        for start, (of_x, of_y) in _chunks(to_map, memory):
            _transform(_INPUT, of_map, first + start, of_x, zeros)
            torch.bmm(of_x, kernels, out=of_y)
            _transform(_OUTPUT, to_map, start, of_y, dropped, bias)
        place = y[images, :, rows]
        if to_map.data_ptr() != place.data_ptr():
            _transpose(to_map.flatten(1, 2), place.flatten(2))
    return y


def _kernel_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the kernel, (C_out, C_in, 3, 3), of (B, C_out, H, W) and (B, C_in, H, W)."""
    grad, x = _in_memory_order(grad), _in_memory_order(x)
    outputs, inputs = grad.shape[1], x.shape[1]
    sums = x.new_zeros(36, outputs, inputs)
    zeros = x.new_zeros(max(inputs, outputs))
    memory = _memory(x, inputs, outputs)
    for images, rows, around, first in _bands(x, max(inputs, outputs)):
        of_map, of_grad = _strip(x, images, around), _strip(grad, images, rows)
        for start, (of_x, of_y) in _chunks(of_grad, memory):
            _transform(_INPUT, of_map, first + start, of_x, zeros)
            _transform(_OUTPUT_GRADIENT, of_grad, start, of_y, zeros)
            sums.baddbmm_(of_y.transpose(1, 2), of_x)
    return (_KERNELS.t() @ sums.view(36, -1)).t().reshape(outputs, inputs, 3, 3)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:2], False)
        of_x = of_weight = of_bias = None
        if differentiates_plainly():  # operators that autograd can differentiate
            of_x, of_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, wanted
            )
        else:
            if wanted[0]:
                of_x = convolve(grad, weight.flip(2, 3).transpose(0, 1), None)
            if wanted[1]:
                of_weight = _kernel_gradient(grad, x)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias


class WinogradConv2d(nn.Conv2d):
    """3 x 3 convolution with stride 1 and padding 1 that uses Winograd's algorithm where it is faster.

    That is on a CPU in fp32, in training and inference. Results differ from those of `torch.nn.Conv2d` by about 1e-5 of
    the largest one.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not takes_winograd(input, weight, bias):
            return super()._conv_forward(input, weight, bias)
        run = _Convolution.apply if torch.is_grad_enabled() else convolve
        return run(input, weight, bias)


def use_winograd(model: nn.Module) -> int:
    """Let the 3 x 3 convolutions of a model on a CPU use Winograd's algorithm; see `WinogradConv2d`.

    Names and values of weights stay. Subclasses of `torch.nn.Conv2d` are not changed.

    Returns:
        The number of convolutions that are changed.
    """
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
        and module.weight.device.type == 'cpu'
        and module.kernel_size == (3, 3)
        and module.padding == module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == 'zeros'
    ]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)
