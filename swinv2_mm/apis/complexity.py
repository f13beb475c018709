"""Parameters and multiply-adds of a model, part by part, and the command `inspect`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.apis.maps import draw_maps, find_backbone
from swinv2_mm.apis.models import build_model, load_model
from swinv2_mm.apis.pictures import write
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.apis.prepared_image import prepare_image
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.console import say
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import tested_data
from swinv2_mm.engine.launch import EXIT_OK, guarded
from swinv2_mm.models import SwinTransformerV2
from swinv2_mm.models.layers import WindowAttention


@dataclass(frozen=True)
class Part:
    """A part of a model, its number of parameters, and its multiply-adds for one image.

    FLOPs are twice as many, or as many, depending on who counts.
    """

    name: str
    params: int
    macs: int


def count_parts(model: nn.Module, size: tuple[int, int]) -> list[Part]:
    """Count the parameters and multiply-adds of the parts of a model for one image, exactly.

    `torch.utils.flop_counter` counts the products in linear layers, convolutions and attention, on tensors without
    data: nothing is computed, and the model stays as it is; docs/model_pictures.md says what is not counted.

    Args:
        model: A detector, segmentor, classifier or backbone; it may be on the meta device.
        size: Height and width of the input, with the padding of the data preprocessor.

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


_DEFAULT_SIZE = (256, 256)


def inspect_model(
    model: str,
    image: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    point: tuple[int, int] | None = None,
    out: str = 'inspection',
    json_file: str | None = None,
    config: str | None = None,
    trust_checkpoint: bool = False,
    device: str = 'auto',
    cfg_options: Sequence[str] = (),
) -> int:
    """Print the parts of a model with parameters and multiply-adds, and draw its maps for an image.

    The arguments are the options of `tools/inspect_model.py`; for the exit code, see `swinv2_mm.engine.launch.train`.
    """

    def run() -> int:
        if image is None and point is not None:
            raise SetupError('--point needs an image.')
        if '://' not in model and not Path(model).is_dir() and Path(model).suffix in ('', '.py'):
            if image is not None:
                raise SetupError(
                    f'Pictures need a trained model, and {model} is a config: name a checkpoint.'
                )
            cfg = load_config(model, cfg_options)
            with torch.device('meta'):  # without memory for its weights
                built = build_model(cfg, model)
        else:
            built = load_model(model, device, cfg_options, config)
            cfg = built.cfg
        find_backbone(built)
        used = size
        if image is not None:
            predictor = Predictor(built)
            prepared = prepare_image(predictor, image)
            height, width = prepared.picture.shape[:2]
            pictures = draw_maps(predictor, image, point or (width // 2, height // 2))
            used = used or tuple(prepared.inputs.shape[2:])  # type: ignore[assignment]
        used = used or _padded(built, _test_size(cfg))
        *rows, total = table = _rows(count_parts(built, used))
        say(_table(table, used))
        if json_file is not None:
            del total['name']
            content = dict(model=model, height=used[0], width=used[1], parts=rows, total=total)
            Path(json_file).parent.mkdir(parents=True, exist_ok=True)
            Path(json_file).write_text(json.dumps(content, indent=2) + '\n')
            say(f'table: {json_file}')
        if image is not None:
            for name, picture in pictures.items():
                write(Path(out, f'{name}.jpg'), picture)
            say(f'pictures: {", ".join(f"{out}/{name}.jpg" for name in pictures)}')
        return EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def _test_size(cfg: Any) -> tuple[int, int]:
    """Return height and width that the test pipeline gives images: the shorter side is the height if it varies."""
    found = _DEFAULT_SIZE
    for step in tested_data(cfg).get('pipeline') or ():
        scale = step.get('crop_size', step.get('scale'))
        if isinstance(scale, int):
            found = scale, scale
        elif isinstance(scale, (list, tuple)) and len(scale) == 2 and min(scale) > 0:
            height, width = sorted(scale) if step.get('keep_ratio') else tuple(scale)[::-1]
            found = int(height), int(width)
    return found


def _padded(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Return a size with the padding of the data preprocessor."""
    divisor = getattr(getattr(model, 'data_preprocessor', None), 'pad_size_divisor', 1) or 1
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def _rows(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the numbers of the parts, and of the whole model at the end."""
    whole = Part('total', sum(part.params for part in parts), sum(part.macs for part in parts))
    return [
        dict(name=part.name, parameters=part.params, macs=part.macs, flops=2 * part.macs)
        for part in (*parts, whole)
    ]


def _table(rows: Sequence[dict[str, Any]], size: tuple[int, int]) -> str:
    width = max(len(row['name']) for row in rows)
    lines = [
        f'one image of {size[0]} x {size[1]} pixels (height x width); a MAC is a multiply-add, 2 FLOPs',
        f'{"part":{width}}  {"parameters":>12}  {"GMACs":>9}  {"GFLOPs":>9}',
    ]
    lines += [
        f'{row["name"]:{width}}  {row["parameters"]:12,}  {row["macs"] / 1e9:9.3f}  {row["flops"] / 1e9:9.3f}'
        for row in rows
    ]
    return '\n'.join(lines)
