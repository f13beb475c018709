"""Pictures of maps: heat over the image, rows with titles, the position bias of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from swinv2_mm.apis.maps import (
    attention_map,
    feature_map,
    find_backbone,
    position_bias,
    similarity_map,
)
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.apis.prepared_image import prepare_image

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_HEIGHT, _WIDEST = 320, 480
"""Pixels of a panel at most."""
_BAR = 26
_TILE, _PER_ROW, _GAP = 72, 12, 4


def draw_maps(predictor: Predictor, image: Any, point: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return pictures of all stages in BGR by name: `features`, `attention`, `similarity` and `position_bias`.

    Args:
        predictor: The model.
        image: See `Predictor`.
        point: x and y in pixels of the image.

    Raises:
        SetupError, ImageError: See `swinv2_mm.apis.maps.attention_map`.
    """
    picture = prepare_image(predictor, image).picture
    stages = range(len(find_backbone(predictor).layers))
    rows: dict[str, list[tuple[str, np.ndarray]]] = {
        'features': [('image', picture)],
        'attention': [('image and point', mark(picture.copy(), point))],
        'similarity': [('image and point', mark(picture.copy(), point))],
    }
    for stage in stages:
        title = f'stage {stage}'
        rows['features'].append((title, feature_map(predictor, image, stage)[..., ::-1]))
        weights = attention_map(predictor, image, point, stage)
        rows['attention'].append(
            (title, heat(picture, np.sqrt(weights / weights.max()), point, weights > 0))
        )
        similar = similarity_map(predictor, image, point, stage)
        rows['similarity'].append((title, heat(picture, similar.clip(0, 1), point)))
    pictures = {name: join(row) for name, row in rows.items()}
    return {**pictures, 'position_bias': _draw_bias([position_bias(predictor, i) for i in stages])}


def heat(
    picture: np.ndarray,
    values: np.ndarray,
    point: tuple[int, int],
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """Return a picture in BGR with values from 0 to 1 in colours over it, and a cross at a point.

    Args:
        picture: `(H, W, 3)` of uint8 in BGR.
        values: `(H, W)`.
        point: x and y.
        inside: `(H, W)` of bool; the picture is dark and grey elsewhere.
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
        parts.append(np.vstack([_title(title, size[0]), resized]))
        parts.append(np.full((len(parts[0]), _GAP, 3), 255, np.uint8))
    return np.hstack(parts[:-1])


def _title(text: str, width: int) -> np.ndarray:
    bar = np.full((_BAR, width, 3), 255, np.uint8)
    cv2.putText(bar, text, (2, 18), _FONT, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return bar


def _draw_bias(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Return the position bias of the last block of each stage: a tile per head, colours from the smallest value."""
    width = min(_PER_ROW, max(len(table) for table in tables)) * (_TILE + _GAP)
    parts = []
    for stage, table in enumerate(tables):
        low, high = float(table.min()), float(table.max())
        text = f'stage {stage}: {len(table)} head{"s" * (len(table) > 1)}, {low:.2f} to {high:.2f}'
        parts.append(_title(text, max(width, 9 * len(text))))
        values = np.rint(255 * (table - low) / max(high - low, 1e-12)).astype(np.uint8)
        for first in range(0, len(values), _PER_ROW):
            row = np.full((_TILE + _GAP, parts[0].shape[1], 3), 255, np.uint8)
            for place, head in enumerate(values[first : first + _PER_ROW]):
                tile = cv2.resize(head, (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)
                left = place * (_TILE + _GAP)
                row[:_TILE, left : left + _TILE] = cv2.applyColorMap(tile, cv2.COLORMAP_VIRIDIS)
            parts.append(row)
    widest = max(part.shape[1] for part in parts)
    padded = [
        np.pad(part, ((0, 0), (0, widest - part.shape[1]), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.vstack(padded)
