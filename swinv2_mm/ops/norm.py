"""Residual addition of a normalised branch, in one pass over memory where a kernel can run."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from swinv2_mm.ops.execution import fuses_norm
from swinv2_mm.ops.llvm import runtime


def add_norm(x: Tensor, y: Tensor, norm: nn.Module, out: Tensor | None = None) -> Tensor:
    """Compute x + norm(y), all `(..., C)`, into `out`, contiguous, possibly `x` or `y`, or a new tensor."""
    if not fuses_norm(x, y, norm):
        found = x + norm(y if x.dtype == torch.bfloat16 else y.to(x.dtype))
        return found if out is None else out.copy_(found)
    from swinv2_mm.ops.llvm import norm_kernel

    norm = cast(nn.LayerNorm, norm)
    out = torch.empty_like(x) if out is None else out
    counter = torch.zeros(1, dtype=torch.int64, device='cpu')
    eps = torch.tensor([norm.eps], dtype=torch.float32, device='cpu')
    weight, bias = norm.weight.float(), norm.bias.float()
    tensors = x, y, out, weight, bias, eps, counter
    rows = x.numel() // x.shape[-1]
    arguments = [*(tensor.data_ptr() for tensor in tensors), rows, x.shape[-1]]
    half = [tensor.dtype == torch.bfloat16 for tensor in (x, y)]
    kernel = norm_kernel.add_norm(runtime.lanes(), *half)
    runtime.run(kernel, arguments, min(torch.get_num_threads(), -(-rows // norm_kernel.ROWS)))
    return out
