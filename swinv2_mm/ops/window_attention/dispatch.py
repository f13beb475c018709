"""The attention function that layers call."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from swinv2_mm.ops import private
from swinv2_mm.ops.execution import calls_kernels_directly, choose_backend
from swinv2_mm.ops.window_attention.fused import fused_window_attention
from swinv2_mm.ops.window_attention.llvm_backend import llvm_window_attention
from swinv2_mm.ops.window_attention.partition import Band, SymbolicPartition, WindowPartition
from swinv2_mm.ops.window_attention.reference import reference_window_attention
from swinv2_mm.ops.window_attention.triton_backend import triton_window_attention

# Returns `change(table)`, computed or cached under a name.
Derive = Callable[[Hashable, Callable[[Tensor], Tensor]], Tensor]


def window_attention(
    qkv: Tensor,
    scale: Tensor,
    bias_table: Tensor | Derive,
    partition: WindowPartition | Band,
    *,
    dropout_p: float = 0.0,
    backend: str = 'auto',
    sequential: bool = False,
) -> Tensor:
    """Compute scaled cosine attention with relative position bias (SwinV2 paper, equation 2) in windows of a map.

    Shapes: B batch, H x W tokens of the map, nH heads, D channels of a head.

    Args:
        qkv: `(B, H, W, 3 * nH * D)`: concatenated queries, keys and values, not normalised.
        scale: `(nH, 1, 1)`, the inverse temperature that multiplies the cosines.
        bias_table: `(nH, 2 * Wh - 1, 2 * Ww - 1)` for windows of Wh x Ww tokens: added to the logits, by the row and
            column offset of query minus key. Or, without gradients, a function `(name, change)` that returns
            `change(table)` and may cache it under that name.
        partition: The windows of the map, or of a band of it.
        dropout_p: Dropout of attention weights.
        backend: One of `swinv2_mm.ops.execution.BACKENDS`. All backends compute the same as `'reference'`.
        sequential: Whether to process windows one by one: least memory, slowest. `'triton'` and `'llvm'` never store
            scores.

    Returns:
        `(B, H, W, nH * D)` in the dtype of `qkv`.

    Raises:
        ValueError: If `backend` is unknown or cannot run here, if the shapes disagree, or if the tensors are on
            different devices.
    """
    heads = len(scale)
    if isinstance(partition, SymbolicPartition):
        backend, sequential = 'reference', False
    chosen = choose_backend(backend, qkv.device, dropout_p, qkv.shape[3] // (3 * heads), qkv.dtype)
    tensors = [qkv, scale]
    if isinstance(bias_table, Tensor):
        tensors.append(check_inputs(qkv, scale, bias_table, partition))

    def derive(name: Hashable, change: Callable[[Tensor], Tensor]) -> Tensor:
        if isinstance(bias_table, Tensor):
            return change(bias_table)
        found = bias_table(name, lambda table: change(check_inputs(qkv, scale, table, partition)))
        if len(found) != heads:
            raise ValueError(f'scale has {heads} heads and the position bias {len(found)}')
        return found

    direct = calls_kernels_directly(*tensors)
    with private.no_autocast(qkv.device):
        if chosen == 'llvm':
            return llvm_window_attention(qkv, scale, derive, partition, direct)
        if chosen == 'fused':
            return fused_window_attention(qkv, scale, derive, partition, sequential)
        if isinstance(partition, Band):
            raise ValueError(f"the backend {chosen!r} cannot attend to a band: use 'auto'")
        table = derive('table', lambda given: given)
        if chosen == 'triton':
            return triton_window_attention(qkv, scale, table, partition, direct)
        if sequential and (dropout_p or backend == 'reference'):
            raise ValueError(
                f"sequential attention needs the backend 'fused' or 'llvm', and {backend!r} with dropout_p={dropout_p} "
                f"is {chosen!r}, which keeps the scores of all windows: set attn_drop_rate=0 and attn_backend='auto'"
            )
        return reference_window_attention(qkv, scale, table, partition, dropout_p)


def check_inputs(
    qkv: Tensor, scale: Tensor, bias_table: Tensor, partition: WindowPartition | Band
) -> Tensor:
    """Check the inputs of `window_attention`, since some backends would read out of bounds; return the table."""
    heads = len(scale)
    table = (heads, *(2 * side - 1 for side in partition.window))
    if type(partition) is WindowPartition and tuple(qkv.shape[1:3]) != tuple(partition.size):
        raise ValueError(
            f'qkv of shape {tuple(qkv.shape)} is not a map of {partition.size[0]} x {partition.size[1]} tokens, '
            'for which the partition is made'
        )
    if tuple(bias_table.shape) != table or scale.numel() != heads or qkv.shape[3] % (3 * heads):
        raise ValueError(
            f'qkv {tuple(qkv.shape)}, scale {tuple(scale.shape)} and bias table {tuple(bias_table.shape)} do not fit '
            f'together: for windows of {partition.window} and {heads} heads the table is {table}, the scale '
            f'{(heads, 1, 1)}, and the channels of qkv are a multiple of {3 * heads}'
        )
    if not qkv.device == scale.device == bias_table.device:
        raise ValueError(
            f'qkv is on {qkv.device}, scale on {scale.device} and the bias table on {bias_table.device}: '
            'move them to one device'
        )
    return bias_table
