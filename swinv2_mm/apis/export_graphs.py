"""Modules that are exported: a trained network from the image to its results, in plain operators."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.engine.errors import SetupError

OUTPUTS = {
    'segmentor': ('labels', 'logits'),
    'classifier': ('logits',),
    'detector': ('boxes', 'scores', 'labels', 'batch_index'),
}
"""Names of the outputs; a detector with a mask head adds `masks`, a backbone has `stage1` to `stage4`."""


class ExportedModel(nn.Module):
    """Normalises images and runs a part of the network on them.

    Args:
        model: The trained model of an OpenMMLab library, in evaluation mode; it is copied.
        dtype: Dtype of the weights; images are normalised in fp32.

    Attributes:
        channels: Channels of the image.
        outputs: Names of the outputs.
    """

    outputs: tuple[str, ...]
    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        given = model.data_preprocessor
        self.channels = model.backbone.in_channels
        self.takes_bgr = takes_bgr(model)
        self.divisor = int(_test_divisor(given))
        self.pad_value = float(getattr(given, 'pad_value', getattr(given, 'pad_val', 0)))
        self.normalizes = bool(getattr(given, '_enable_normalize', False))
        if self.normalizes:
            self.register_buffer('mean', given.mean.detach().clone().view(-1, 1, 1).float())
            self.register_buffer('std', given.std.detach().clone().view(-1, 1, 1).float())
        self.dtype = dtype
        self.model = without_decisions(copy.deepcopy(model)).to(dtype).requires_grad_(False)

    def prepare(self, image: Tensor) -> Tensor:
        """Map images `(B, H, W, C)`, RGB if there are three channels, to the input of the backbone."""
        x = image.permute(0, 3, 1, 2).float()
        if self.takes_bgr:
            x = x[:, [2, 1, 0]]
        if self.normalizes:
            x = (x - self.mean) / self.std
        if self.divisor > 1:
            most = self.divisor - 1
            height, width = (size + most - (size + most) % self.divisor for size in x.shape[2:])
            x = F.pad(x, (0, most, 0, most), value=self.pad_value)[:, :, :height, :width]
        return x.to(self.dtype)


class ExportedBackbone(ExportedModel):
    """Feature maps `(B, C_i, H_i, W_i)` of the backbone."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(model, dtype)
        self.outputs = tuple(f'stage{stage + 1}' for stage in self.model.backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map images to one map per stage."""
        return tuple(feature.float() for feature in self.model.backbone(self.prepare(image)))


class ExportedClassifier(ExportedModel):
    """Logits `(B, classes)`."""

    outputs = OUTPUTS['classifier']

    def forward(self, image: Tensor) -> Tensor:
        """Map images to logits."""
        return self.model(self.prepare(image), mode='tensor').float()


class ExportedSegmentor(ExportedModel):
    """Label map `(B, H, W)` and logits `(B, classes, H, W)`, both of the size of the image."""

    outputs = OUTPUTS['segmentor']

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to labels and logits."""
        x = self.prepare(image)
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x)).float()
        logits = F.interpolate(
            logits, size=x.shape[2:], mode='bilinear', align_corners=self.model.align_corners
        )[:, :, : image.shape[1], : image.shape[2]]
        if head.out_channels > 1:
            return logits.argmax(1).to(torch.int32), logits
        return (logits[:, 0].sigmoid() > head.threshold).to(torch.int32), logits


def takes_bgr(model: Any) -> bool:
    """Return whether the network, after its preprocessor, expects BGR: three channels as OpenCV reads them."""
    converts = getattr(model.data_preprocessor, '_channel_conversion', None)
    if converts is None:
        converts = getattr(model.data_preprocessor, 'channel_conversion', None)
    if converts is None:
        converts = getattr(model.data_preprocessor, 'to_rgb', False)
    return model.backbone.in_channels == 3 and not converts


def _test_divisor(preprocessor: Any) -> int:
    """Return what the preprocessor pads the sides of test images to a multiple of."""
    test = getattr(preprocessor, 'test_cfg', None) or {}
    if test.get('size'):
        raise SetupError(
            'The data preprocessor pads test images to a fixed size: export with --cfg-options '
            'model.data_preprocessor.test_cfg=None.'
        )
    return test.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', 1) or 1


class _Pool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, which do not depend on the size of the map."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, *size)`."""
        rows, cols = (self._weights(x, axis).to(x.dtype) for axis in (0, 1))
        return rows @ x @ cols.t()

    def _weights(self, x: Tensor, axis: int) -> Tensor:
        bins, extent = self.size[axis], x.shape[axis + 2]
        index = torch.arange(bins, device=x.device)[:, None]
        start, end = index * extent // bins, ((index + 1) * extent + (bins - 1)) // bins
        position = torch.arange(extent, device=x.device)
        inside = (position >= start) & (position < end)
        return inside.float() / (end - start).float()


def without_decisions(model: nn.Module) -> nn.Module:
    """Replace modules that decide by the size of their input, in place."""
    child: Any
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                new: nn.Module = _Pool(child.output_size)
            elif type(child).__name__ == 'Upsample' and not isinstance(child, nn.Upsample):
                new = nn.Upsample(child.size, child.scale_factor, child.mode, child.align_corners)
            else:
                continue
            parent.register_module(name, new)
    return model


def least(size: Any, most: int) -> Any:
    """Return the smaller of a size, which may be unknown, and a number."""
    return min(size, most) if isinstance(size, int) else torch.minimum(size, torch.tensor(most))
