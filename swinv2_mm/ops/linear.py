"""Linear layer that uses the matrix products of oneDNN where they are faster.

On a CPU torch computes fp32 products with MKL, which on processors of other vendors than Intel reaches three quarters
of the peak of AVX2 and half the peak of AVX-512. oneDNN is faster: with AVX-512 through the operator that torch's
compiler uses for linear layers; with AVX2, where that operator is not faster than MKL, through a 1 x 1 convolution.
On Intel processors MKL is faster in training, and oneDNN in inference, where it fuses the GELU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from swinv2_mm.ops.execution import (
    differentiates_plainly,
    is_as_made,
    takes_onednn,
    takes_onednn_in_bf16,
)
from swinv2_mm.ops.private import onednn_linear, onednn_weight

_AVX512 = torch.backends.cpu.get_cpu_capability() == 'AVX512'
_LINEAR: Any = onednn_linear()

# Measured on two cores with AVX2; outside of these limits MKL is as fast or faster. With more input channels the
# convolution is three times slower at some numbers of rows.
_CHANNELS = range(16, 2305)
# oneDNN sums over all channels sequentially, MKL in parts of 192. With many channels that doubles the rounding error:
# negligible for feature maps, but gradients of the temperature are sums that cancel. Summed in parts they agree with
# other implementations to 1e-5; for gradients of the input larger parts suffice.
_CHANNELS_OF_A_PART = 192
_CHANNELS_OF_A_GRADIENT_PART = 768
_ROWS = 64
_ROWS_OF_INPUT_GRADIENT = 256
_CHANNELS_OF_WEIGHT_GRADIENT = range(16, 1537)
_ROWS_OF_WEIGHT_GRADIENT = 1024


def _as_map(x: Tensor) -> Tensor:
    """View `(..., H, W, C)` as a map `(B, C, H, W)`, and fewer axes as a map one pixel wide."""
    x = x.reshape(1, -1, 1, x.shape[-1]) if x.dim() < 3 else x.reshape(-1, *x.shape[-3:])
    return x.permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `(..., C_in)` times `(C_out, C_in)`, transposed."""
    if _AVX512:
        return _LINEAR(x, weight, bias, 'none', [], '')
    if x.shape[-1] not in _CHANNELS or x.numel() < _ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    kernel = weight[:, :, None, None]
    y = torch.mkldnn_convolution(_as_map(x), kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def _product_in_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, channels: int = _CHANNELS_OF_A_PART
) -> Tensor:
    """Like `_product`, with smaller rounding errors: sum over parts of the input channels."""
    if x.shape[-1] <= channels:
        return _product(x, weight, bias)
    if not _AVX512:
        return F.linear(x, weight, bias)  # as fast as convolutions in parts
    rows, kernels = (tensor.split(channels, dim=-1) for tensor in (x, weight))
    # For oneDNN a transposed kernel is as fast, but a non-contiguous one is not.
    kernels = [part if part.t().is_contiguous() else part.contiguous() for part in kernels]
    y = _product(rows[0], kernels[0], bias)
    for row, kernel in zip(rows[1:], kernels[1:]):
        y += _product(row, kernel)
    return y


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> Tensor:
    """Return the gradient of `x` (channels-last map) or of the kernel, `(C_out, C_in, 1, 1)`."""
    return torch.ops.aten.convolution_backward(
        _as_map(grad), _as_map(x), weight[:, :, None, None], None,
        (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (of_x, not of_x, False),
    )[0 if of_x else 1]  # fmt: skip


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `(..., C_out)` times `(C_out, C_in)`."""
    if _AVX512:
        return _product_in_parts(grad, weight.t(), channels=_CHANNELS_OF_A_GRADIENT_PART)
    if min(weight.shape) < _CHANNELS[0] or x.numel() < _ROWS_OF_INPUT_GRADIENT * x.shape[-1]:
        return grad @ weight
    return _convolution_backward(grad, x, weight, of_x=True).permute(0, 2, 3, 1).reshape(x.shape)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `(..., C_out)` transposed times `(..., C_in)`."""
    of_rows, rows = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, x))
    if _AVX512:  # the first operand is copied: pass the narrower one
        if x.shape[-1] < grad.shape[-1] < len(rows):
            return _product(rows.t(), of_rows.t()).t()
        return _product(of_rows.t(), rows.t())
    is_map = x.dim() > 3 and len(rows) >= _ROWS_OF_WEIGHT_GRADIENT
    if is_map and all(channels in _CHANNELS_OF_WEIGHT_GRADIENT for channels in weight.shape):
        return _convolution_backward(grad, x, weight, of_x=False).view_as(weight)
    return of_rows.t() @ rows


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.shapes = x.shape, weight.shape
        ctx.save_for_backward(
            x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
        )
        return _product_in_parts(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # Of what was not saved, only the shape matters.
        x, weight = (
            grad.new_empty(shape) if saved is None else saved
            for saved, shape in zip(ctx.saved_tensors, ctx.shapes)
        )
        of_x = of_weight = of_bias = None
        # With `create_graph=True`: plain operators, which autograd can differentiate.
        twice = differentiates_plainly()
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight if twice else _input_gradient(grad, x, weight)
        if ctx.needs_input_grad[1]:
            of_rows, rows = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, x))
            of_weight = of_rows.t() @ rows if twice else _weight_gradient(grad, x, weight)
        if ctx.needs_input_grad[2]:
            of_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return of_x, of_weight, of_bias


_lock = threading.Lock()
_contexts = 0
_Copy = tuple[Tensor, int, Tensor]
_converted: MutableMapping[Tensor, dict[torch.dtype, _Copy]] = WeakTensorKeyDictionary()
"""By weight and dtype: an alias, so that no other weight gets its memory; its version; its copy."""


@contextmanager
def constant_weights() -> Iterator[None]:
    """Convert weights of linear layers for oneDNN once, and keep these copies until the end of the context.

    For inference on a CPU with AVX-512, in fp32 or bf16. Do not train inside: changes by fused optimizers and through
    `.data` are not noticed, others are. Contexts may be nested, and threads share the copies.
    """
    global _contexts
    with _lock:
        _contexts += 1
    try:
        yield
    finally:
        with _lock:
            _contexts -= 1
            if not _contexts:
                _converted.clear()


def _for_onednn(weight: Tensor, dtype: torch.dtype, x: Tensor) -> Tensor:
    """Return a weight in `dtype`; inside of `constant_weights`, in the layout of oneDNN for `x`."""
    if not _contexts or type(weight) is not nn.Parameter or weight.is_inference():
        return weight.to(dtype)
    with _lock:
        known = _converted.get(weight, {}).get(dtype)
    if known and known[0].data_ptr() == weight.data_ptr() and known[1] == weight._version:
        return known[2]
    alias, version = weight.detach(), weight._version
    copy = onednn_weight(alias.to(dtype), x.numel() // x.shape[-1])
    with _lock:
        if _contexts:  # another thread may have ended the last one
            _converted.setdefault(weight, {})[dtype] = alias, version, copy
    return copy


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Compute `torch.nn.functional.linear`, followed by the exact GELU if `gelu`."""
    if takes_onednn_in_bf16(x, weight, bias):
        bias = None if bias is None else bias.bfloat16()
        kernel = _for_onednn(weight, torch.bfloat16, x)
        return _LINEAR(x.bfloat16(), kernel, bias, 'gelu' if gelu else 'none', [], 'none')
    if not takes_onednn(x, weight, bias):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    if not torch.is_grad_enabled():
        if _AVX512:
            kernel = _for_onednn(weight, torch.float32, x)
            return _LINEAR(x, kernel, bias, 'gelu' if gelu else 'none', [], 'none')
        y = _product(x, weight, bias)
        return torch.ops.aten.gelu_(y) if gelu else y
    y = _OneDnnLinear.apply(x, weight, bias)
    return F.gelu(y) if gelu else y


def call_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply `linear` if `layer` is an `nn.Linear` that nothing observes; call the module otherwise."""
    if not is_as_made(layer, nn.Linear):
        return layer(x)
    layer = cast(nn.Linear, layer)
    return linear(x, layer.weight, layer.bias)
