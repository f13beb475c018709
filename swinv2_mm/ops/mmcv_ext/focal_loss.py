"""Sigmoid focal loss of the mmcv stand-in (Lin et al., "Focal Loss", ICCV 2017), one-stage heads' class loss.

Shape legend: N samples, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write each sample's loss per class into `output`.

    Args:
        input: (N, C) logits.
        target: (N,) class of each sample; C stands for none of them.
        weight: (C,) factor for the samples of each class, or an empty tensor for none.
        output: (N, C), overwritten.
        gamma: exponent of the factor that fades out easy samples.
        alpha: weight of the sample's own class; 1 - alpha is that of the others.
    """
    logits, own, factor = _operands(input, target, weight, alpha)
    signed = torch.where(
        own, logits, -logits
    )  # the loss of the other classes is that of the opposite answer
    loss = -(torch.sigmoid(-signed) ** gamma) * F.logsigmoid(signed)
    output.copy_(loss * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element of `sigmoid_focal_loss_forward` by its logit into `grad_input`."""
    logits, own, factor = _operands(input, target, weight, alpha)
    signed = torch.where(own, logits, -logits)
    p, q = torch.sigmoid(signed), torch.sigmoid(-signed)
    slope = q**gamma * (gamma * p * F.logsigmoid(signed) - q)
    grad_input.copy_(torch.where(own, slope, -slope) * factor)


def _operands(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), whether a class is the sample's own (N, C), and the constant factor of each loss (N, C)."""
    logits = input.to(working_dtype(input))
    own = target[:, None] == torch.arange(input.size(1), device=input.device)
    factor = torch.full_like(logits, 1 - alpha).masked_fill_(own, alpha)
    if weight.numel():
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return logits, own, factor
