"""The command `inspect`: a model's parts with parameters and multiply-adds, and pictures of what it computes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from swinv2_mm.apis.complexity import Part, count_parts
from swinv2_mm.apis.map_pictures import draw_maps
from swinv2_mm.apis.maps import find_backbone
from swinv2_mm.apis.models import load_model
from swinv2_mm.apis.pictures import write
from swinv2_mm.apis.predictor import ImageError, Predictor
from swinv2_mm.apis.prepared_image import prepare_image
from swinv2_mm.engine.config import drop_pretrained, load_config
from swinv2_mm.engine.console import import_library, say
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.evaluation import innermost
from swinv2_mm.engine.launch import EXIT_OK, guarded

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

    Args:
        model: A config, a work directory, or a checkpoint.
        image: A photograph, for pictures and the size; not for a config.
        size: Height and width of the input; default: those of the image, else of the test pipeline.
        point: x and y of the token whose attention and similarity are drawn; default: the centre.
        out: Folder of the pictures.
        json_file: Where to write the table.
        config: The config file of a checkpoint that has none inside or beside it.
        trust_checkpoint: Accept checkpoints as they are, with code to run.
        device: A device of torch, or `'auto'`.
        cfg_options: Strings `KEY=VALUE` that override the config.

    Returns:
        The exit code: 0, 1 after a crash, 2 if something outside the program is wrong.
    """

    def run() -> int:
        if image is None and point is not None:
            raise SetupError('--point needs an image.')
        if '://' not in model and not Path(model).is_dir() and Path(model).suffix in ('', '.py'):
            if image is not None:
                raise SetupError(
                    f'Pictures need a trained model, and {model} is a config: name a checkpoint.'
                )
            built, cfg = _build(model, cfg_options)
        else:
            built = load_model(model, device, cfg_options, config)
            cfg = built.cfg
        find_backbone(built)
        used = size
        if image is not None:
            predictor = Predictor(built)
            try:
                prepared = prepare_image(predictor, image)
                height, width = prepared.picture.shape[:2]
                pictures = draw_maps(predictor, image, point or (width // 2, height // 2))
            except ImageError as error:
                raise SetupError(str(error)) from error
            used = used or tuple(prepared.inputs.shape[2:])  # type: ignore[assignment]
        used = used or _padded(built, _test_size(cfg))
        parts = count_parts(built, used)
        say(_table(parts, used))
        if json_file is not None:
            _write_json(json_file, model, parts, used)
        if image is not None:
            for name, picture in pictures.items():
                write(Path(out, f'{name}.jpg'), picture)
            say(f'pictures: {", ".join(f"{out}/{name}.jpg" for name in pictures)}')
        return EXIT_OK

    return guarded(run, trust=trust_checkpoint)


def _build(config: str, options: Sequence[str]) -> tuple[nn.Module, Any]:
    """Build the model of a config without memory for its weights."""
    cfg = load_config(config, options)
    import_library(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    drop_pretrained(cfg.model)
    try:
        with torch.device('meta'):
            return revert_sync_batchnorm(MODELS.build(cfg.model)), cfg
    except Exception as error:
        raise SetupError(f'The model of {config} cannot be built: {error}') from error


def _test_size(cfg: Any) -> tuple[int, int]:
    """Return height and width that the test pipeline gives images: the shorter side is the height if it varies."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    found = _DEFAULT_SIZE
    for step in innermost(loader.get('dataset') or {}).get('pipeline') or ():
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


def _table(parts: Sequence[Part], size: tuple[int, int]) -> str:
    rows = [*parts, Part('total', sum(p.params for p in parts), sum(p.macs for p in parts))]
    width = max(len(row.name) for row in rows)
    lines = [
        f'one image of {size[0]} x {size[1]} pixels (height x width); a MAC is a multiply-add, 2 FLOPs',
        f'{"part":{width}}  {"parameters":>12}  {"GMACs":>9}  {"GFLOPs":>9}',
    ]
    lines += [
        f'{row.name:{width}}  {row.params:12,}  {row.macs / 1e9:9.3f}  {2 * row.macs / 1e9:9.3f}'
        for row in rows
    ]
    return '\n'.join(lines)


def _write_json(file: str, model: str, parts: Sequence[Part], size: tuple[int, int]) -> None:
    listed: list[dict[str, Any]] = [
        dict(name=p.name, parameters=p.params, macs=p.macs, flops=2 * p.macs) for p in parts
    ]
    total = {key: sum(row[key] for row in listed) for key in ('parameters', 'macs', 'flops')}
    content = dict(model=model, height=size[0], width=size[1], parts=listed, total=total)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(content, indent=2) + '\n')
    say(f'table: {file}')
