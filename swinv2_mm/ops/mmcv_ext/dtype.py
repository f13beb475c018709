"""Dtype in which the operators of the mmcv stand-in compute."""

from functools import reduce

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float32, or float64 if any of the tensors needs it.

    torchvision's CPU kernels do not support half or bfloat16, and coordinates in these formats are wrong by whole
    pixels on feature maps of common sizes. The operators therefore compute in this dtype on every device and round
    once, when they write the output.
    """
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
