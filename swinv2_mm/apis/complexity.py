"""Parameters and multiply-adds of a model, part by part."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.models import SwinTransformerV2
from swinv2_mm.models.layers import WindowAttention


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Args:
        name: Its name.
        params: Number of parameters.
        macs: Multiply-adds for one image. FLOPs are twice as many, or as many, depending on who counts.
    """

    name: str
    params: int
    macs: int


def count_parts(model: nn.Module, size: tuple[int, int]) -> list[Part]:
    """Count the parameters and multiply-adds of the parts of a model for one image, exactly.

    `torch.utils.flop_counter` counts the products in linear layers, convolutions and attention, on tensors without
    data: nothing is computed, and the model stays as it is. Not counted are norms, activations, sums, resizing,
    RoIAlign, NMS, and the MLP of the position bias, which depends on the weights only. Windows at the border of a map
    count as complete ones, as in the reference implementation; the kernels skip their padding. RoI heads are counted
    for as many regions and masks as the `test_cfg` of the model allows, an auxiliary head as 0.

    Args:
        model: A detector, segmentor, classifier or backbone; it may be on the meta device.
        size: Height and width of the input, with the padding of the data preprocessor.

    Returns:
        The parts that have parameters; no parameter is in two of them.

    Raises:
        SetupError: If a head of the model does not run on feature maps alone.
    """
    shadow = copy.deepcopy(model).to('meta').eval()
    channels = 3
    for part in shadow.modules():
        if isinstance(part, WindowAttention):
            part.backend, part.sequential = 'reference', False
            part.position_bias = _Table(part.num_heads)  # type: ignore[method-assign]
        elif isinstance(part, SwinTransformerV2):
            channels = part.in_channels
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            _Inference(shadow)(torch.empty(1, channels, *size, device='meta'))
        except Exception as error:  # heads of any library
            raise SetupError(
                f'The multiply-adds of {type(model).__name__} cannot be counted, only those of models whose heads run '
                f'on feature maps alone: {error}'
            ) from error
    counts = counter.get_flop_counts()
    found = []
    for name, modules in _parts(model):
        params = sum(p.numel() for key in modules for p in model.get_submodule(key).parameters())
        # The backbone calls the merging of a stage itself.
        keys = [key + end for key in modules for end in ('', '.downsample')]
        flops = sum(sum(counts.get(f'_Inference.model.{key}', {}).values()) for key in keys)
        if params:
            found.append(Part(name, params, flops // 2))
    return found


class _Table:
    """A position bias without the MLP."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def __call__(self, window: tuple[int, int]) -> Tensor:
        return torch.empty(self.heads, *(2 * side - 1 for side in window), device='meta')


class _Inference(nn.Module):
    """The modules that run in inference, called one by one so that the counter knows their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> None:
        """Run a model on `(1, C, H, W)` without what follows the heads."""
        model: Any = self.model
        if not hasattr(model, 'extract_feat'):
            model(inputs)
            return
        features = model.extract_feat(inputs)
        for name in ('decode_head', 'rpn_head', 'bbox_head', 'mask_head', 'head'):
            head = getattr(model, name, None)
            if isinstance(head, nn.Module):
                head(features)
        if hasattr(model, 'roi_head'):
            for head, count, extractor in _roi_heads(model):
                side = extractor.roi_layers[0].output_size
                head(inputs.new_empty(count, extractor.out_channels, *side))


def _roi_heads(model: Any) -> Iterator[tuple[nn.Module, int, Any]]:
    """Yield the heads of regions with the number of regions that they see, and what cuts the regions out."""
    roi, limits = model.roi_head, model.test_cfg
    for name, count in (('bbox', limits.rpn.max_per_img), ('mask', limits.rcnn.max_per_img)):
        heads = getattr(roi, f'{name}_head', None)
        if heads is None:
            continue
        extractors = getattr(roi, f'{name}_roi_extractor')
        if not isinstance(heads, nn.ModuleList):
            heads, extractors = [heads], [extractors]
        for head, extractor in zip(heads, extractors):
            yield head, count, extractor


def _parts(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of a model and the names of their modules."""
    if isinstance(model, SwinTransformerV2):
        yield from _backbone_parts(model, '')
        return
    for name, child in model.named_children():
        if isinstance(child, SwinTransformerV2):
            yield from _backbone_parts(child, f'{name}.')
        elif name == 'roi_head':
            for inner, part in child.named_children():
                stages = range(len(part)) if isinstance(part, nn.ModuleList) else None
                keys = (
                    [f'{name}.{inner}']
                    if stages is None
                    else [f'{name}.{inner}.{i}' for i in stages]
                )
                yield f'roi_head.{inner}', keys
        else:
            yield name, [name]


def _backbone_parts(backbone: SwinTransformerV2, prefix: str) -> Iterator[tuple[str, list[str]]]:
    yield 'backbone: patches', [f'{prefix}patch_embed']
    for stage in range(len(backbone.layers)):
        yield f'backbone: stage {stage}', [f'{prefix}layers.{stage}']
    norms = [name for name, _ in backbone.named_children() if name.startswith('norm')]
    yield 'backbone: output norms', [prefix + name for name in norms]
