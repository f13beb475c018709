"""Whether tensors fit together, for backends that would read beyond the end of one that does not."""

from __future__ import annotations

from torch import Tensor

from swinv2_mm.ops.window_attention.partition import WindowPartition


def check_inputs(
    qkv: Tensor, scale: Tensor, bias_table: Tensor, partition: WindowPartition
) -> None:
    """Check what `window_attention` takes.

    Raises:
        ValueError: If the shapes disagree, or the tensors are on different devices.
    """
    heads = len(bias_table)
    table = (heads, *(2 * side - 1 for side in partition.window))
    if tuple(qkv.shape[1:3]) != tuple(partition.size):
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
