"""The number format in which the operators of the mmcv stand-in compute."""

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The smallest format of at least float32 that holds all the given tensors without loss.

    torchvision's CPU kernels take no half or bfloat16, and coordinate arithmetic in either is wrong by whole
    pixels on feature maps of ordinary size. The operators therefore compute in float32 (float64 for float64) on
    every device and round once, into the caller's output.

    Args:
        tensors: the operands; integer tensors count as float32.

    Returns:
        `torch.float32` or `torch.float64`.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
