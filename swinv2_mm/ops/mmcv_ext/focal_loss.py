"""Sigmoid focal loss of the mmcv stand-in (Lin et al., "Focal Loss", ICCV 2017), as used by one-stage heads.

Shape legend: N samples, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the loss of each sample and class into `output`.

    Args:
        input: (N, C) logits.
        target: (N,) class of each sample; C for background.
        weight: (C,) factor for the samples of each class, or an empty tensor for no factors.
        output: (N, C), overwritten.
        gamma: exponent of the factor that down-weights easy samples.
        alpha: weight of the sample's class; the other classes have weight 1 - alpha.
    """
    logits, own, factor = _operands(input, target, weight, alpha)
    signed = torch.where(own, logits, -logits)  # the other classes use the negated logit
    loss = -(torch.sigmoid(-signed) ** gamma) * F.logsigmoid(signed)
    output.copy_(loss * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the derivative of each element of `sigmoid_focal_loss_forward` by its logit into `grad_input`."""
    logits, own, factor = _operands(input, target, weight, alpha)
    signed = torch.where(own, logits, -logits)
    p, q = torch.sigmoid(signed), torch.sigmoid(-signed)
    slope = q**gamma * (gamma * p * F.logsigmoid(signed) - q)
    grad_input.copy_(torch.where(own, slope, -slope) * factor)


def _operands(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, one-hot mask of the targets and constant factor of each loss, (N, C) each."""
    logits = input.to(working_dtype(input))
    own = target[:, None] == torch.arange(input.size(1), device=input.device)
    factor = torch.full_like(logits, 1 - alpha).masked_fill_(own, alpha)
    if weight.numel():
        factor = factor * weight.to(logits.dtype)[target][:, None]
    return logits, own, factor
