"""The linear layer, on oneDNN's matrix products where those are the faster ones.

On a CPU torch takes products in fp32 to MKL, which on processors that are not Intel's keeps to three quarters of what AVX2 offers
and to half of what AVX-512 does. oneDNN does better, by another operator on each: with AVX-512 the one that torch's
own compiler uses for linear layers; with AVX2, where that one is no faster than MKL, its convolution with a kernel of one pixel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

_AVX512 = torch.backends.cpu.get_cpu_capability() == 'AVX512'
_AVX2 = torch.backends.cpu.get_cpu_capability() == 'AVX2'
_LINEAR = None
if torch.backends.mkldnn.is_available():
    _LINEAR = getattr(torch.ops.mkldnn, '_linear_pointwise', None)

# Measured on two cores with AVX2. The convolution cannot cut many input channels well (a third of the speed at some
# numbers of rows), and below these numbers of rows or channels MKL is as fast.
_CHANNELS = range(16, 2305)
_ROWS = 64
_ROWS_OF_INPUT_GRADIENT = 1024
_ROWS_OF_WEIGHT_GRADIENT = 4096
_POINTWISE = ((0, 0), (1, 1), (1, 1), 1)  # padding, stride, dilation, groups

if _LINEAR is not None:

    @register_flop_formula(_LINEAR)
    def _linear_flops(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        """For torch's flop counter: shapes `(..., C_in)` and `(C_out, C_in)`."""
        return 2 * math.prod(x) * weight[0]


if torch.ops.aten.mkldnn_convolution not in flop_registry:
    _count = flop_registry[torch.ops.aten.convolution]

    @register_flop_formula(torch.ops.aten.mkldnn_convolution, get_raw=True)
    def _convolution_flops(
        x: Any, weight: Any, bias: Any, padding: Any, stride: Any, dilation: Any, groups: Any,
        out_val: Any = None, **kwargs: Any,
    ) -> int:  # fmt: skip
        """As of the convolution that may have any backend."""
        return _count(
            x, weight, bias, stride, padding, dilation, False, [0, 0], groups, out_val=out_val
        )


def uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` goes to oneDNN: fp32 on a CPU, and no tracer, compiler, transform or autocast at work."""
    if torch.compiler.is_compiling() or not (_LINEAR is not None and (_AVX2 or _AVX512)):
        return False
    return (
        x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and type(x) in (Tensor, torch.nn.Parameter)
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not torch.jit.is_tracing()
        and not torch.onnx.is_in_onnx_export()
        and not torch.is_autocast_enabled('cpu')
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _as_map(x: Tensor) -> Tensor:
    """Rows as pixels: `(..., H, W, C)` to `(B, C, H, W)` with channels last, anything else to maps one pixel wide."""
    x = x.reshape(1, -1, 1, x.shape[-1]) if x.dim() < 3 else x.reshape(-1, *x.shape[-3:])
    return x.permute(0, 3, 1, 2)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, least_rows: int = _ROWS
) -> Tensor:
    """`(..., C_in)` times `(C_out, C_in)`, transposed."""
    if _AVX512:
        return _LINEAR(x, weight, bias, 'none', [], '')  # type: ignore[misc]
    channels = x.shape[-1]
    if channels not in _CHANNELS or x.numel() < least_rows * channels:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
    y = torch.mkldnn_convolution(rows, weight[:, :, None, None], bias, *_POINTWISE)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`(..., C_out)` transposed times `(..., C_in)`."""
    rows = x.numel() // x.shape[-1]
    if _AVX512:
        return _product(grad.reshape(rows, -1).t(), x.reshape(rows, -1).t())
    if rows < _ROWS_OF_WEIGHT_GRADIENT or min(weight.shape) < _CHANNELS[0]:
        return grad.reshape(rows, -1).t() @ x.reshape(rows, -1)
    kernel = weight[:, :, None, None]
    padding, stride, dilation, groups = _POINTWISE
    return torch.ops.aten.convolution_backward(
        _as_map(grad), _as_map(x), kernel, None,
        stride, padding, dilation, False, (0, 0), groups, (False, True, False),
    )[1].view_as(weight)  # fmt: skip


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(grad, weight.t(), least_rows=_ROWS_OF_INPUT_GRADIENT)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(grad, x, weight)
        if ctx.needs_input_grad[2]:
            of_bias = grad.flatten(0, -2).sum(0)
        return of_x, of_weight, of_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """As `torch.nn.functional.linear`.

    Args:
        x: `(..., C_in)`.
        weight: `(C_out, C_in)`.
        bias: `(C_out,)` or `None`.
        gelu: Whether the exact GELU follows; for inference, since the product before it is not kept.

    Returns:
        `(..., C_out)`.
    """
    if not uses_onednn(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    if not torch.is_grad_enabled():
        if not gelu:
            return _product(x, weight, bias)
        if _AVX512:
            return _LINEAR(x, weight, bias, 'gelu', [], 'none')  # type: ignore[misc]
        return torch.ops.aten.gelu_(_product(x, weight, bias))
    y = _OneDnnLinear.apply(x, weight, bias)
    return F.gelu(y) if gelu else y
