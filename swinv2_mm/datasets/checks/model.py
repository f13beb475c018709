"""Check that neck, heads and preprocessor of a model fit this package's backbones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from torch.nn.parallel import DistributedDataParallel

from swinv2_mm.datasets.checks.configured import ConfiguredData, as_list
from swinv2_mm.datasets.checks.finding import Finding, Severity, error

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of RGB images, as for all published weights of SwinV2."""
_SIDE = 256
"""Height and width of the image whose feature maps neck and heads are tried with."""
_STOPS = 'with several processes a training stops at their norms, which have no gradient'
_SIMILAR = 0.2
"""YOLACT computes its strides from the size of the image: 7 and 15 instead of 8 and 16."""


def check_model(data: ConfiguredData) -> Iterator[Finding]:
    """Find parts that expect other channels, strides or images than those of the backbone; say what to write."""
    if data.scope not in ('mmdet', 'mmseg'):
        return
    cfg = data.cfg.model
    cfg = cfg.get('detector') or cfg  # of a wrapper such as mmdet's semi-supervised models
    unbuildable = [*_check_lists(cfg)]
    yield from unbuildable
    if unbuildable:
        return
    model = data.model()
    if isinstance(model, DistributedDataParallel):
        model = model.module
    backbone = getattr(model, 'backbone', None)
    # Parts of FSDP do not run alone.
    if not hasattr(backbone, 'out_strides') or is_model_wrapper(model):
        return
    yield from _check_images(cfg.get('data_preprocessor') or {}, backbone)
    found = [*_check_channels(cfg, model, backbone)] or [*_try_parts(cfg, model, backbone)]
    yield from found
    if not data.cfg.get('find_unused_parameters') and not (cfg.get('neck') and found):
        severity: Severity = 'error' if get_world_size() > 1 else 'warning'
        for unused in _check_unused(cfg, backbone):
            yield dataclasses.replace(unused, severity=severity)


def _check_lists(cfg: Mapping[str, Any]) -> Iterator[Finding]:
    """Find heads of a segmentor with more or fewer `in_channels` than maps that they take."""
    for place, part in _after_backbone(cfg):
        channels, index = part.get('in_channels'), part.get('in_index')
        if isinstance(index, (list, tuple)) and len(as_list(channels)) != len(index):
            sentence = f'{place}.in_channels is {channels}, and in_index={list(index)} chooses {len(index)} maps.'
            remedy = (
                f'Set {place}.in_channels to the channels of these maps, or in_index to all maps.'
            )
            yield error(place, sentence, remedy)
        elif isinstance(index, int) and isinstance(channels, (list, tuple)):
            sentence = (
                f'{place}.in_channels is {list(channels)}, and in_index={index} chooses one map.'
            )
            known = -len(channels) <= index < len(channels)
            remedy = f'Set {place}.in_channels={channels[index]}.' if known else ''
            yield error(place, sentence, remedy)


def _check_images(preprocessor: Mapping[str, Any], backbone: Any) -> Iterator[Finding]:
    """Compare the normalisation of images with that of the weights."""
    mean, std = (np.array(preprocessor.get(key) or [0.0], float) for key in ('mean', 'std'))
    if backbone.in_channels != 3 or 'mean' not in preprocessor:
        return
    place = 'model.data_preprocessor'
    remedy = f'Set {place}=dict(mean={list(MEAN)}, std={list(STD)}, bgr_to_rgb=True).'
    if std.max() <= 1 < np.abs(mean).max():
        sentence = f'{place}.std is {std.tolist()}, as for backbones of Caffe: SwinV2 would get values of up to 255.'
        yield error(place, sentence, remedy)
    elif backbone.init_cfg and not preprocessor.get('bgr_to_rgb'):
        sentence = f'{place}.bgr_to_rgb is not set, and the weights of the backbone were trained on RGB images.'
        yield error(place, sentence, remedy)
    elif backbone.init_cfg and not (np.allclose(mean, MEAN, 0.1) and np.allclose(std, STD, 0.1)):
        sentence = f'{place} has mean {mean.tolist()} and std {std.tolist()}, other than the weights of the backbone.'
        yield Finding('warning', place, sentence, remedy)


def _check_channels(cfg: Mapping[str, Any], model: Any, backbone: Any) -> Iterator[Finding]:
    """Compare `in_channels` of what follows the backbone with its maps."""
    for place, part in _after_backbone(cfg):
        channels, index = part.get('in_channels'), part.get('in_index')
        if isinstance(channels, int) and index is None:  # a neck such as YOLOF's takes the last map
            module = dict(model.named_modules()).get(place.removeprefix('model.'))
            index = -1 if place == 'model.neck' else getattr(module, 'in_index', None)
        if channels is None or (index is None and not isinstance(channels, (list, tuple))):
            continue
        chosen = range(len(backbone.out_channels)) if index is None else as_list(index)
        given = [backbone.out_channels[i] for i in chosen if -4 <= i < len(backbone.out_channels)]
        if index is None and _are_reversed(channels):
            given.reverse()
        if as_list(channels) != given or len(given) != len(chosen):
            maps = ', '.join(f'{c} channels at stride {s}' for c, s in _maps(backbone))
            sentence = f'{place}.in_channels is {channels}, and the backbone gives maps of {maps}'
            by = 'it' if place == 'model.neck' else 'in_index'
            sentence += '.' if index is None else f', of which {by} chooses {index}.'
            if isinstance(channels, (list, tuple)) and index is None:
                remedy = _line(place, part, model, backbone, len(channels))
            else:
                remedy = _line_of_head(place, backbone, index, given)
            yield error(place, sentence, remedy)
        first = part.get('c1_in_channels')  # of DeepLabV3+, for the first map
        if first and first != backbone.out_channels[0]:
            sentence = f'{place}.c1_in_channels is {first}, and the first map has {backbone.out_channels[0]} channels.'
            yield error(place, sentence, f'Set {place}.c1_in_channels={backbone.out_channels[0]}.')


def _line_of_head(place: str, backbone: Any, index: Any, given: list[int]) -> str:
    """Return what to write for a head that chooses maps by `in_index`."""
    if given:
        return f'Set {place}.in_channels={given if len(given) > 1 else given[0]}.'
    if index not in backbone.out_indices:
        return ''
    moved = list(backbone.out_indices).index(index)  # it counted the stages
    channels = backbone.out_channels[moved]
    return f'Set {place}.in_index={moved} and {place}.in_channels={channels}.'


def _check_unused(cfg: Mapping[str, Any], backbone: Any) -> Iterator[Finding]:
    """Find maps that nothing takes; with several processes torch stops at weights without gradient."""
    for place, neck in _after_backbone(cfg) if cfg.get('neck') else ():
        start = int(neck.get('start_level') or 0)
        takes_one = isinstance(neck.get('in_channels'), int) or (
            neck.get('type') == 'ChannelMapper' and neck.get('num_outs') == 1
        )
        first = start or (len(backbone.out_indices) - 1 if takes_one else 0)
        if first:
            indices, channels = backbone.out_indices[first:], list(backbone.out_channels[first:])
            named = channels[0] if isinstance(neck.get('in_channels'), int) else channels
            lines = [f'model.backbone.out_indices={tuple(indices)}', f'{place}.in_channels={named}']
            lines += [f'{place}.start_level=0'] if start else []
            sentence = (
                f'{place} does not take the maps {list(range(first))} of the backbone: {_STOPS}.'
            )
            yield Finding('warning', place, sentence, f'Set {" and ".join(lines)}.')
    parts = [part for _, part in _after_backbone(cfg) if part.get('in_index') is not None]
    count = len(backbone.out_indices)
    used = {index % count for part in parts for index in as_list(part['in_index'])}
    used |= {0 for part in parts if part.get('c1_in_channels')}
    if not cfg.get('neck') and used and len(used) < count:
        kept = tuple(backbone.out_indices[index] for index in sorted(used))
        sentence = (
            f'No head takes the maps {sorted(set(range(count)) - used)} of the backbone: {_STOPS}.'
        )
        moved = f'Set model.backbone.out_indices={kept}, and count in_index of the heads from the first of them.'
        yield Finding('warning', 'model.backbone.out_indices', sentence, moved)


def _after_backbone(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield place and config of the neck, or of the heads of a model without one."""
    keys = ('neck',) if cfg.get('neck') else ('decode_head', 'auxiliary_head', 'panoptic_head')
    for key in keys:
        parts = as_list(cfg.get(key))
        for number, part in enumerate(parts):
            place = f'model.{key}.{number}' if len(parts) > 1 else f'model.{key}'
            if isinstance(part, Mapping) and 'kernel_generate_head' in part:  # of K-Net
                place, part = f'{place}.kernel_generate_head', part['kernel_generate_head']
            if isinstance(part, Mapping) and (key != 'neck' or not number):
                yield place, part


def _try_parts(cfg: Mapping[str, Any], model: Any, backbone: Any) -> Iterator[Finding]:
    """Run neck and heads on maps of the sizes that the backbone gives."""
    weight = next(model.parameters())
    sizes = [(c, -(-_SIDE // s)) for c, s in _maps(backbone)]
    maps: Any = tuple(weight.new_zeros(1, c, side, side) for c, side in sizes)
    place = 'model.neck'
    try:
        if getattr(model, 'neck', None) is not None:
            maps = _run(model.neck, maps)
        found = [*_check_strides(cfg, model, backbone, maps)]
        yield from found
        for place, head in [] if found else _heads(model):  # noqa: B007 (used below)
            _run(head, maps)
    except (TypeError, AttributeError):
        return  # it takes more than the maps
    except NotImplementedError as missing:
        yield error(place, f'{place} cannot run: {missing}')
    except (RuntimeError, ValueError, IndexError, AssertionError) as fault:
        given = ', '.join(f'{c} channels at stride {s}' for c, s in _maps(backbone))
        reason = str(fault).strip().split('\n')[0] or type(fault).__name__
        yield error(place, f'{place} cannot take the maps of the backbone, {given}: {reason}.')


def _run(part: torch.nn.Module, maps: Any) -> Any:
    training = part.training
    try:
        with torch.no_grad():
            return part.eval()(maps)
    finally:
        part.train(training)


def _heads(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield place and module of the heads that take the maps."""
    for name in ('decode_head', 'auxiliary_head', 'rpn_head', 'bbox_head'):
        heads = getattr(model, name, None)
        if isinstance(heads, torch.nn.ModuleList):
            # In a cascade, the second head also takes the results of the first.
            count = 1 if name == 'decode_head' else len(heads)
            yield from ((f'model.{name}.{i}', head) for i, head in enumerate(heads[:count]))
        elif heads is not None and type(heads).forward is not torch.nn.Module.forward:
            yield f'model.{name}', heads


def _check_strides(
    cfg: Mapping[str, Any], model: Any, backbone: Any, maps: Any
) -> Iterator[Finding]:
    """Compare the strides that heads are built for with those of the maps that they get."""
    strides = [round(_SIDE / one.shape[-1]) for one in maps]
    (place, part), *_ = [*_after_backbone(cfg), ('model', cfg)]
    wanted = _wanted(model)
    for name, values in wanted.items():
        found = strides[: len(values)]
        if len(found) != len(values) or not np.allclose(found, values, rtol=_SIMILAR):
            sentence = (
                f'model.{name} expects maps of strides {values}, and gets those of {strides}.'
            )
            yield error(place, sentence, _line(place, part, model, backbone))
            return
    mapper = part.get('type') == 'ChannelMapper' and part.get('num_outs') != 1
    if mapper and not wanted and strides == [4, 8, 16, 32]:
        sentence = (
            f'The transformer gets maps of strides {strides}; published models of four levels get '
            f'{[*strides[1:], 64]}, which are a quarter of the tokens.'
        )
        remedy = _line(place, part, model, backbone, len(strides) - 1)
        yield Finding('warning', place, sentence, remedy)


def _wanted(model: Any) -> dict[str, list[int]]:
    """Return the strides that heads are built for, by the name of the module and the attribute."""
    found = {}
    for name, module in model.named_modules():
        if name.startswith(('backbone', 'neck')):
            continue
        prior = getattr(module, 'prior_generator', None)
        values = dict(featmap_strides=getattr(module, 'featmap_strides', None))
        values['feature_strides'] = getattr(module, 'feature_strides', None)
        values['prior_generator.strides'] = getattr(prior, 'strides', None)
        if 'PixelDecoder' in type(module).__name__:
            values['strides'] = getattr(module, 'strides', None)
        for key, strides in values.items():
            if isinstance(strides, (list, tuple)) and len(strides) > 1:
                found[f'{name}.{key}'] = [int(np.atleast_1d(s)[0]) for s in strides]
    return found


def _are_reversed(channels: Any) -> bool:
    """Return whether a part names its maps from the smallest to the largest, as YOLOv3's neck does."""
    return isinstance(channels, (list, tuple)) and len(channels) > 1 and channels[0] > channels[-1]


def _maps(backbone: Any) -> list[tuple[int, int]]:
    return list(zip(backbone.out_channels, backbone.out_strides))


def _line(
    place: str, part: Mapping[str, Any], model: Any, backbone: Any, count: int | None = None
) -> str:
    """Return what to write so that the backbone gives what its successors expect.

    If no head says which strides it is for, these are the last `count` maps.
    """
    stages = len(backbone.arch.dims)
    first, others = stages - min(count, stages) if count else 0, []
    for strides in _wanted(model).values():
        octaves = np.log2(min(strides) / backbone.out_strides[0])
        stage = round(octaves) + backbone.out_indices[0]
        first = min(max(0, stage), stages - 1)
        others = [f'{place}.start_level=0'] if part.get('start_level') else []
        break
    indices = tuple(range(first, stages))
    channels = [backbone.arch.dims[stage] for stage in indices]
    if _are_reversed(part.get('in_channels')):
        channels.reverse()
    of_part = f'{place}.in_channels={channels}' if 'in_channels' in part else ''
    ours = '' if indices == tuple(backbone.out_indices) else f'model.backbone.out_indices={indices}'
    return f'Set {" and ".join(filter(None, [ours, of_part, *others]))}.'
