"""The one attention function that layers call, and the choice of its backend."""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_mm.ops.exporting import is_exporting
from swinv2_mm.ops.window_attention.fused import fused_window_attention
from swinv2_mm.ops.window_attention.llvm_backend import llvm_window_attention, why_not_llvm
from swinv2_mm.ops.window_attention.partition import WindowPartition
from swinv2_mm.ops.window_attention.reference import reference_window_attention
from swinv2_mm.ops.window_attention.triton_backend import triton_window_attention, why_not_triton

_NAMES = ('auto', 'reference', 'fused', 'llvm', 'triton')
_WHY_NOT = {'llvm': why_not_llvm, 'triton': why_not_triton}


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` accepts, `'auto'` first."""
    return _NAMES


def check_backend(name: str) -> str:
    """Return `name` if it names a backend.

    Raises:
        ValueError: If it does not; the message lists the names that do.
    """
    if name not in _NAMES:
        raise ValueError(f'unknown attention backend {name!r}: choose one of {", ".join(_NAMES)}')
    return name


def choose_backend(
    name: str,
    device: torch.device,
    dropout_p: float = 0.0,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
) -> str:
    """The backend that runs: `name`, or for `'auto'` the fastest that can.

    Args:
        name: One of `available_backends()`.
        device: Where the tensors are.
        dropout_p: Dropout of attention weights.
        head_dim: Channels of a head.
        dtype: That of queries, keys and values.

    Raises:
        ValueError: If `name` is unknown, or cannot run; the message says why.
    """
    check_backend(name)
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():
        return 'reference'  # plain operators, every one of which ONNX and TorchScript know
    if name == 'auto':
        if dropout_p:
            return 'reference'
        if is_exporting():
            return 'fused'  # what an exported program is made of has to exist where it runs
        kernel = {'cuda': 'triton', 'cpu': 'llvm'}.get(device.type)
        if kernel is None or _WHY_NOT[kernel](device, head_dim, dtype) is not None:
            return 'fused'
        return kernel
    if name != 'reference' and dropout_p:
        raise ValueError(
            f"attention backend '{name}' cannot drop attention weights, and dropout_p is {dropout_p}: set "
            "attn_drop_rate=0, or attn_backend='auto' or 'reference'"
        )
    reason = _WHY_NOT[name](device, head_dim, dtype) if name in _WHY_NOT else None
    if reason is not None:
        raise ValueError(
            f"attention backend '{name}' cannot run here, because {reason}; attn_backend='auto' takes the fastest "
            'backend that can'
        )
    return name


def window_attention(
    qkv: Tensor,
    scale: Tensor,
    bias_table: Tensor,
    partition: WindowPartition,
    *,
    dropout_p: float = 0.0,
    backend: str = 'auto',
    sequential: bool = False,
) -> Tensor:
    """Scaled cosine attention with relative position bias (SwinV2 paper, equation 2) inside the windows of a map.

    Shapes: B batch, H x W tokens of the map, nH heads, D channels of a head.

    Args:
        qkv: `(B, H, W, 3 * nH * D)`: queries, keys and values beside one another, not normalised.
        scale: `(nH, 1, 1)`, the inverse temperature that multiplies the cosines.
        bias_table: `(nH, 2 * Wh - 1, 2 * Ww - 1)` for windows of Wh x Ww tokens: what is added to the logits, by the
            row and column offset of query minus key.
        partition: How the map is cut into windows.
        dropout_p: Probability with which an attention weight is dropped.
        backend: One of `available_backends()`. Every backend equals `'reference'`.
        sequential: Whether windows are attended one after the other: the least memory, and the slowest. `'triton'`
            and `'llvm'` store no scores anyway.

    Returns:
        `(B, H, W, nH * D)` in the dtype of `qkv`.

    Raises:
        ValueError: If `backend` is unknown or cannot run here.
    """
    head_dim = qkv.shape[3] // (3 * bias_table.shape[0])
    chosen = choose_backend(backend, qkv.device, dropout_p, head_dim, qkv.dtype)
    if chosen == 'triton':
        return triton_window_attention(qkv, scale, bias_table, partition)
    if chosen == 'llvm':
        return llvm_window_attention(qkv, scale, bias_table, partition)
    if chosen == 'fused':
        return fused_window_attention(qkv, scale, bias_table, partition, sequential)
    if sequential and (dropout_p or backend == 'reference'):
        raise ValueError(
            f"sequential attention needs the backend 'fused' or 'llvm', and {backend!r} with dropout_p={dropout_p} is "
            f"{chosen!r}, which keeps the scores of all windows: set attn_drop_rate=0 and attn_backend='auto'"
        )
    return reference_window_attention(qkv, scale, bias_table, partition, dropout_p)
