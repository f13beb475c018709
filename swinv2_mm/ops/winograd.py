"""3 x 3 convolutions by Winograd's minimal filtering F(4 x 4, 3 x 3), with a quarter of the multiplications.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. Tiles of 6 x 6 pixels and the
kernels are transformed, multiplied channel by channel as 36 matrix products, and transformed back to tiles of 4 x 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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

Matrix = tuple[tuple[float, ...], ...]
Transform = Callable[..., None]


def _both_sides(matrix: Any) -> Tensor:
    """Return the matrix that transforms flat squares as `matrix` does on both of their sides."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


_KERNELS = _both_sides(_KERNEL)  # (36, 9)


def _chunks(x: Tensor, *channels: int) -> Iterator[tuple[Transform, list[Tensor]]]:
    """Yield, for some of the tiles of maps (B, H, W, C) at a time, a function that transforms them, and memory.

    Memory is (36, tiles, C) for each number of channels.
    """
    images, height, width = x.shape[:3]
    rows, columns = -(-height // 4), -(-width // 4)
    total = images * rows * columns
    buffers = [x.new_empty(36 * min(total, _TILES) * number) for number in channels]
    for start in range(0, total, _TILES):
        count = min(_TILES, total - start)
        tiles = start, count, rows, columns, height, width
        parts = [
            buffer[: 36 * count * number].view(36, count, number)
            for buffer, number in zip(buffers, channels)
        ]
        yield functools.partial(_transform, tiles), parts


def _transform(
    tiles: tuple[int, ...],
    matrix: Matrix,
    maps: Tensor,
    transformed: Tensor,
    outside: Tensor,
    bias: Tensor | None = None,
) -> None:
    """Transform tiles of `maps`; with a bias, transform to tiles of `maps`. See `winograd_kernel.ARGUMENTS`."""
    from swinv2_mm.ops.llvm import winograd_kernel

    offset = -1 if matrix is _INPUT else 0
    kernel = winograd_kernel.transform(matrix, offset, bias is not None, runtime.lanes())
    counter = torch.zeros(1, dtype=torch.int64, device='cpu')
    tensors = maps, transformed, outside, outside if bias is None else bias, counter
    threads = min(torch.get_num_threads(), -(-tiles[1] // winograd_kernel.TILES))
    runtime.run(kernel, [*(x.data_ptr() for x in tensors), *tiles, maps.shape[-1]], threads)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, H, W, C_in) with (C_out, C_in, 3, 3) to (B, C_out, H, W) in channels-last memory."""
    outputs, inputs = weight.shape[:2]
    kernels = (_KERNELS @ weight.reshape(-1, 9).t()).view(36, outputs, inputs).transpose(1, 2)
    shape = x.shape[0], outputs, *x.shape[1:3]
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last, device='cpu')
    bias = x.new_zeros(outputs) if bias is None else bias.contiguous()
    zeros, dropped = x.new_zeros(inputs), x.new_empty(outputs)
    for transform, (of_x, of_y) in _chunks(x, inputs, outputs):
        transform(_INPUT, x, of_x, zeros)
        torch.bmm(of_x, kernels, out=of_y)
        transform(_OUTPUT, y.permute(0, 2, 3, 1), of_y, dropped, bias)
    return y


def _kernel_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the kernel, (C_out, C_in, 3, 3), of (B, H, W, C_out) and (B, H, W, C_in)."""
    outputs, inputs = grad.shape[-1], x.shape[-1]
    sums = x.new_zeros(36, outputs, inputs)
    zeros = x.new_zeros(max(inputs, outputs))
    for transform, (of_x, of_y) in _chunks(x, inputs, outputs):
        transform(_INPUT, x, of_x, zeros)
        transform(_OUTPUT_GRADIENT, grad, of_y, zeros)
        sums.baddbmm_(of_y.transpose(1, 2), of_x)
    return (_KERNELS.t() @ sums.view(36, -1)).t().reshape(outputs, inputs, 3, 3)


def _transpose(x: Tensor, out: Tensor, rows: int, columns: int) -> Tensor:
    """Copy `x` to a tensor of the same shape whose memory is that of `x` transposed, (B, rows, columns)."""
    from swinv2_mm.ops.llvm import winograd_kernel

    if min(rows, columns) < runtime.lanes():
        return out.copy_(x)
    counter = torch.zeros(1, dtype=torch.int64, device='cpu')
    arguments = [*(tensor.data_ptr() for tensor in (x, out, counter)), len(x), rows, columns]
    runtime.run(winograd_kernel.transpose(runtime.lanes()), arguments, torch.get_num_threads())
    return out


def _channels_last(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as contiguous (B, H, W, C)."""
    if x.is_contiguous():
        pixels = x.shape[2] * x.shape[3]
        out = torch.empty_like(x, memory_format=torch.channels_last)
        x = _transpose(x, out, x.shape[1], pixels)
    return x.permute(0, 2, 3, 1).contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C_in, H, W) with (C_out, C_in, 3, 3), without gradients; the layout of memory is that of `x`."""
    y = _convolve(_channels_last(x), weight, bias)
    if not x.is_contiguous():
        return y
    return _transpose(y, x.new_empty(y.shape), y.shape[2] * y.shape[3], y.shape[1])


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
                of_weight = _kernel_gradient(_channels_last(grad), _channels_last(x))
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
