"""Maps of what a backbone computes for an image: attention, features, similarity, position bias; their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.apis.pictures import stack, title_bar
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.apis.prepared_image import PreparedImage, prepare_image
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.models import SwinTransformerV2
from swinv2_mm.models.layers import SwinBlock, WindowAttention, apply_output_norm
from swinv2_mm.ops.window_attention import WindowPartition
from swinv2_mm.ops.window_attention.reference import expand_bias, normalize


def find_backbone(model: nn.Module | Predictor) -> SwinTransformerV2:
    """Return the backbone of a model; refuse those of other packages."""
    module: nn.Module = model.model if isinstance(model, Predictor) else model
    for part in module.modules():
        if isinstance(part, SwinTransformerV2):
            return part
    kind = type(getattr(module, 'backbone', module)).__name__
    raise SetupError(f'The backbone of the model is {kind}, not SwinTransformerV2 of swinv2_mm.')


def pick_stage(backbone: SwinTransformerV2, stage: int) -> int:
    """Return the number of a stage from 0; negative ones count from the end."""
    count = len(backbone.layers)
    if stage not in range(-count, count):
        raise SetupError(
            f'Stage {stage} does not exist: the backbone has the stages 0 to {count - 1}.'
        )
    return stage % count


def pick_block(backbone: SwinTransformerV2, stage: int, block: int) -> SwinBlock:
    """Return a block; see `pick_stage`."""
    stage = pick_stage(backbone, stage)
    blocks: Any = backbone.layers[stage].blocks
    if block not in range(-len(blocks), len(blocks)):
        raise SetupError(
            f'Block {block} does not exist: stage {stage} has the blocks 0 to {len(blocks) - 1}.'
        )
    return blocks[block]


def attention_map(
    model: nn.Module | Predictor,
    image: Any,
    point: tuple[float, float],
    stage: int = -1,
    block: int = -1,
) -> np.ndarray:
    """Return how much the token at a point attends to every other token, as the mean over the heads.

    Args:
        model: A model of `swinv2_mm.apis.models.load_model`, its `Predictor`, or a backbone.
        image: See `Predictor`.
        point: x and y in pixels of the image.
        stage: The stage; negative ones count from the end.
        block: The block of the stage; odd blocks have shifted windows.

    Returns:
        `(H, W)` of float32 at the size of the image: each pixel has the weight of its token. The weights of all tokens
        add up to 1; they are zero outside of the window.

    Raises:
        SetupError: If the point, stage or block does not exist, or the backbone is of another package.
        ImageError: If the image cannot be read or prepared.
    """
    backbone = find_backbone(model)
    attention, stride = pick_block(backbone, stage, block).attn, _stride(backbone, stage)
    prepared = prepare_image(model, image)
    row, col = prepared.token(point, stride)
    seen: list[Any] = []
    _run(backbone, prepared, attention.register_forward_pre_hook(lambda _, args: seen.extend(args)))
    with torch.no_grad():
        weights = token_attention(attention, seen[0], seen[1], row, col)
    return prepared.spread(weights.mean(0)[..., None].cpu().numpy(), stride, smooth=False)[..., 0]


def token_attention(
    attention: WindowAttention, x: Tensor, partition: WindowPartition, row: int, col: int
) -> Tensor:
    """Return the attention weights of one token by the formulas of the reference backend, which keeps them.

    `x`, `(1, H, W, C)`, is the input of the block's attention. The weights, `(nH, H, W)` in fp32, are zero outside of
    the token's window.
    """
    height, width = partition.size
    numbers = torch.arange(height * width, device=x.device).view(1, height, width, 1)
    numbers = partition.split(numbers + 1)[..., 0] - 1  # (nW, N), -1 is padding
    window, place = (numbers == row * width + col).nonzero()[0].tolist()
    q, k, _ = (
        partition.split(attention.project(x))[window]
        .unflatten(-1, (3, attention.num_heads, -1))
        .permute(1, 2, 0, 3)
    )
    logits = (normalize(k) @ normalize(q[:, place])[..., None])[..., 0]
    logits = logits * attention.scale()[..., 0]
    logits = logits + expand_bias(attention.position_bias(partition.window))[:, place]
    regions = partition.regions(x.device)
    if regions is not None:
        logits[:, regions[window] != regions[window, place]] = -torch.inf
    real = numbers[window] >= 0
    weights = logits.new_zeros(len(logits), height * width)
    weights[:, numbers[window][real]] = logits.softmax(-1)[:, real]
    return weights.view(-1, height, width).float()


def feature_map(model: nn.Module | Predictor, image: Any, stage: int = -1) -> np.ndarray:
    """Return the first three principal components of the features of a stage as red, green and blue.

    The arguments are those of `attention_map`.

    Returns:
        `(H, W, 3)` of uint8 at the size of the image. Components are scaled between their percentiles 1 and 99.
    """
    prepared, features, stride = _features(model, image, stage)
    flat = features.flatten(0, 1).double().cpu()
    flat = flat - flat.mean(0)
    _, axes = torch.linalg.eigh(flat.T @ flat)
    axes = axes[:, -3:].flip(1)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # otherwise the sign is arbitrary
    values = (flat @ axes).numpy()
    low, high = np.percentile(values, (1, 99), axis=0)
    values = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colours = np.zeros((*features.shape[:2], 3), np.float32)
    colours[..., : values.shape[1]] = values.reshape(*features.shape[:2], -1)
    return np.rint(prepared.spread(colours, stride, smooth=True) * 255).astype(np.uint8)


def similarity_map(
    model: nn.Module | Predictor, image: Any, point: tuple[float, float], stage: int = -1
) -> np.ndarray:
    """Return the cosine similarity of the features of a stage with those at a point.

    The arguments are those of `attention_map`.

    Returns:
        `(H, W)` of float32 from -1 to 1 at the size of the image, interpolated between tokens.
    """
    prepared, features, stride = _features(model, image, stage, point)
    row, col = prepared.token(point, stride)
    similar = F.cosine_similarity(features, features[row, col], dim=-1)
    return prepared.spread(similar[..., None].cpu().numpy(), stride, smooth=True)[..., 0]


def position_bias(model: nn.Module | Predictor, stage: int = -1, block: int = -1) -> np.ndarray:
    """Return what a block adds to the logits of its attention, by head and offset of query minus key in tokens.

    The arguments are those of `attention_map`.

    Returns:
        `(nH, 2 * Wh - 1, 2 * Ww - 1)` of float32 for windows of Wh x Ww tokens; the offset 0 is at the centre.
    """
    found = pick_block(find_backbone(model), stage, block)
    with torch.no_grad():
        return found.attn.position_bias(found.window_size).float().cpu().numpy()


def _features(
    model: nn.Module | Predictor, image: Any, stage: int, point: tuple[float, float] | None = None
) -> tuple[PreparedImage, Tensor, int]:
    """Return the prepared image, the features `(h, w, C)` of its tokens without padding, and their stride."""
    backbone = find_backbone(model)
    stride, number = _stride(backbone, stage), pick_stage(backbone, stage)
    prepared = prepare_image(model, image)
    if point is not None:
        prepared.token(point, stride)
    seen: list[Tensor] = []
    stage_layer: Any = backbone.layers[number]
    _run(backbone, prepared, stage_layer.register_forward_hook(lambda *args: seen.append(args[2])))
    with torch.no_grad():
        normed = apply_output_norm(getattr(backbone, f'norm{number}', None), seen[0])
    rows, cols = (-(-side // stride) for side in prepared.used)
    return prepared, normed[0, :, :rows, :cols].permute(1, 2, 0).float(), stride


def _stride(backbone: SwinTransformerV2, stage: int) -> int:
    return backbone.patch_embed.patch_size * 2 ** pick_stage(backbone, stage)


def _run(backbone: SwinTransformerV2, prepared: PreparedImage, hook: Any) -> None:
    """Run the backbone in evaluation mode and remove the hook."""
    training, like = backbone.training, next(backbone.parameters())
    try:
        with torch.no_grad():
            backbone.eval()(prepared.inputs.to(like.device, like.dtype))
    finally:
        hook.remove()
        backbone.train(training)


_HEIGHT, _WIDEST = 320, 480
"""Pixels of a panel at most."""
_TILE, _PER_ROW, _GAP = 72, 12, 4


def draw_maps(predictor: Predictor, image: Any, point: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return pictures of all stages in BGR by name: `features`, `attention`, `similarity` and `position_bias`.

    The arguments are those of `attention_map`.
    """
    picture = prepare_image(predictor, image).picture
    stages = range(len(find_backbone(predictor).layers))
    rows: dict[str, list[tuple[str, np.ndarray]]] = {
        'features': [('image', picture)],
        'attention': [('image and point', mark(picture.copy(), point))],
        'similarity': [('image and point', mark(picture.copy(), point))],
    }
    for stage in stages:
        for name, drawn in draw_stage(predictor, image, picture, point, stage).items():
            rows[name].append((f'stage {stage}', drawn))
    pictures = {name: join(row) for name, row in rows.items()}
    return {**pictures, 'position_bias': _draw_bias([position_bias(predictor, i) for i in stages])}


def draw_stage(
    predictor: Predictor, image: Any, picture: np.ndarray, point: tuple[int, int], stage: int
) -> dict[str, np.ndarray]:
    """Return pictures in BGR of a stage by name, without the position bias; see `draw_maps`."""
    weights = attention_map(predictor, image, point, stage)
    similar = similarity_map(predictor, image, point, stage)
    return {
        'attention': heat(picture, np.sqrt(weights / weights.max()), point, weights > 0),
        'similarity': heat(picture, similar.clip(0, 1), point),
        'features': feature_map(predictor, image, stage)[..., ::-1],
    }


def heat(
    picture: np.ndarray,
    values: np.ndarray,
    point: tuple[int, int],
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """Return a picture in BGR with values `(H, W)` from 0 to 1 in colours over it, and a cross at a point.

    Outside of `inside`, the picture is dark and grey.
    """
    colours = cv2.applyColorMap(np.rint(255 * values).astype(np.uint8), cv2.COLORMAP_TURBO)
    mixed = cv2.addWeighted(picture, 0.4, colours, 0.6, 0)
    if inside is not None:
        grey = (picture.mean(-1, keepdims=True) * 0.5).astype(np.uint8)
        mixed = np.where(inside[..., None], mixed, grey)
    return mark(mixed, point)


def mark(picture: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """Draw a white cross with a dark edge at a point of a picture."""
    at, size = (int(point[0]), int(point[1])), max(picture.shape[:2]) // 25 + 5
    line = 1 + size // 12
    for colour, width in (((0, 0, 0), line + 2), ((255, 255, 255), line)):
        cv2.drawMarker(picture, at, colour, cv2.MARKER_CROSS, size, width, cv2.LINE_AA)
    return picture


def join(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return pictures of one size side by side, each with its title above."""
    height, width = panels[0][1].shape[:2]
    scale = min(_HEIGHT / height, _WIDEST / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    parts = []
    for title, picture in panels:
        resized = cv2.resize(picture, size, interpolation=method)
        parts.append(np.vstack([title_bar(title, size[0]), resized]))
        parts.append(np.full((len(parts[0]), _GAP, 3), 255, np.uint8))
    return np.hstack(parts[:-1])


def _draw_bias(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Return the position bias of the last block of each stage: a tile per head, colours from the smallest value."""
    width = min(_PER_ROW, max(len(table) for table in tables)) * (_TILE + _GAP)
    parts = []
    for stage, table in enumerate(tables):
        low, high = float(table.min()), float(table.max())
        text = f'stage {stage}: {len(table)} head{"s" * (len(table) > 1)}, {low:.2f} to {high:.2f}'
        parts.append(title_bar(text, max(width, 9 * len(text))))
        values = np.rint(255 * (table - low) / max(high - low, 1e-12)).astype(np.uint8)
        for first in range(0, len(values), _PER_ROW):
            row = np.full((_TILE + _GAP, parts[0].shape[1], 3), 255, np.uint8)
            for place, head in enumerate(values[first : first + _PER_ROW]):
                tile = cv2.resize(head, (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)
                left = place * (_TILE + _GAP)
                row[:_TILE, left : left + _TILE] = cv2.applyColorMap(tile, cv2.COLORMAP_VIRIDIS)
            parts.append(row)
    return stack(parts, 0)
