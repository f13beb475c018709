"""Dtype in which the operators of the mmcv stand-in compute."""

from functools import reduce

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float32, or float64 if any of the tensors needs it.

    torchvision's CPU kernels do not support half precision, and its coordinates are wrong by whole pixels.
    """
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
