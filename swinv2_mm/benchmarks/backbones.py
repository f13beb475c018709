"""The same SwinV2 of several libraries, each with the same weights and the same four stage maps.

Every function here runs in the process of its contestant and imports its library only there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.benchmarks.cases import SIZES, Case, shrunk_windows
from swinv2_mm.benchmarks.contestants import SEQUENTIAL
from swinv2_mm.benchmarks.task import Task, autocast
from swinv2_mm.benchmarks.weights import load_weights

Maps = Callable[[Tensor], Sequence[Tensor]]


def build_ours(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """Our backbone."""
    from swinv2_mm import SwinTransformerV2

    parsed = Case.from_dict(case)
    is_sequential = options['backend'] == SEQUENTIAL
    model = SwinTransformerV2(
        vars(SIZES[parsed.arch]),
        window_size=parsed.window,
        drop_path_rate=0.0,
        norm_cfg=None,
        attn_backend='auto' if is_sequential else options['backend'],
        sequential_self_attention=is_sequential,
    )
    return _task(model, model, 'native', parsed, options)


def build_timm(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """timm's, whose windows shrink to smaller maps; the unit of its position bias is held at the window asked for."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    parsed = Case.from_dict(case)
    size = SIZES[parsed.arch]
    model = SwinTransformerV2(
        img_size=parsed.input,
        embed_dim=size.embed_dims,
        depths=size.depths,
        num_heads=size.num_heads,
        window_size=parsed.window,
        pretrained_window_sizes=(parsed.window,) * len(size.depths),
        drop_path_rate=0.0,
        num_classes=0,
    )

    def maps(image: Tensor) -> Any:
        return model.forward_intermediates(image, intermediates_only=True)

    return _task(model, maps, 'timm', parsed, options)


def build_torchvision(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """torchvision's, which pads smaller maps to the window."""
    from torchvision.models.swin_transformer import (
        PatchMergingV2,
        SwinTransformer,
        SwinTransformerBlockV2,
    )

    parsed = Case.from_dict(case)
    size = SIZES[parsed.arch]
    model = SwinTransformer(
        [4, 4],
        size.embed_dims,
        list(size.depths),
        list(size.num_heads),
        [parsed.window, parsed.window],
        stochastic_depth_prob=0.0,
        num_classes=1,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )

    def maps(image: Tensor) -> list[Tensor]:
        x, found = image, []
        for index, module in enumerate(model.features):
            x = module(x)
            if index % 2:  # the even ones embed and merge
                found.append(x.permute(0, 3, 1, 2).contiguous())
        return found

    return _task(model, maps, 'torchvision', parsed, options)


def build_hf(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """transformers', whose windows shrink to maps that are less high."""
    from transformers import Swinv2Backbone, Swinv2Config

    parsed = Case.from_dict(case)
    size = SIZES[parsed.arch]
    stages = len(size.depths)
    config = Swinv2Config(
        image_size=parsed.input,
        embed_dim=size.embed_dims,
        depths=list(size.depths),
        num_heads=list(size.num_heads),
        window_size=parsed.window,
        pretrained_window_sizes=[parsed.window] * stages,
        drop_path_rate=0.0,
        out_features=[f'stage{stage + 1}' for stage in range(stages)],
    )
    model = Swinv2Backbone(config)

    def maps(image: Tensor) -> list[Tensor]:
        return [x.contiguous() for x in model(image).feature_maps]

    return _task(model, maps, 'hf', parsed, options)


def build_mmpretrain(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """mmpretrain's; its windows must not exceed the map, so they are set to the smaller of both."""
    from mmpretrain.models.backbones import SwinTransformerV2

    parsed = Case.from_dict(case)
    size = SIZES[parsed.arch]
    model = SwinTransformerV2(
        arch=vars(size),
        img_size=parsed.input,
        window_size=shrunk_windows(parsed),
        pretrained_window_sizes=[parsed.window] * len(size.depths),
        drop_path_rate=0.0,
        out_indices=tuple(range(len(size.depths))),
        norm_cfg=None,
    )
    return _task(model, model, 'mmpretrain', parsed, options)


def _task(
    model: nn.Module, maps: Maps, layout: str, case: Case, options: Mapping[str, Any]
) -> Task:
    """Loads the weights, and makes a call out of a function from image to stage maps."""
    load_weights(model, options['weights'], layout)
    is_training = case.mode == 'train'
    model.train(is_training)  # not chained: mmpretrain's returns nothing
    model.to(case.device)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(case.batch, 3, *case.input, generator=generator).to(case.device)
    call = torch.compile(maps) if options.get('compile') else maps

    def look() -> list[Tensor]:
        with torch.no_grad(), autocast(case.device, case.dtype):
            return list(call(image))

    def step() -> None:
        with autocast(case.device, case.dtype):
            found = call(image)
        torch.stack([x.float().square().mean() for x in found]).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    info = {'shared_weights': True, 'parameters': sum(p.numel() for p in model.parameters())}
    return Task(step if is_training else look, look, case.device, info)
