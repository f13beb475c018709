"""Pictures of predictions, at the size of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from swinv2_mm.apis.results import Prediction

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SMALLEST_SIDE = 224
"""Pixels to which smaller pictures are enlarged, so that words can be read on them."""
_LARGEST_JPEG = 65500
_LEGEND = 24
"""Number of classes that a legend lists at most, the largest ones."""


def draw(prediction: Prediction, side: int | None = None) -> np.ndarray:
    """Return the picture `(H, W, 3)` in BGR with the prediction drawn into it.

    Boxes, masks and labels have the colour of the class. The lines and the text grow with the image. Images below 224
    pixels are enlarged, and those above `side` reduced.
    """
    height, width = prediction.image.shape[:2]
    longest = max(height, width)
    scale = max(_SMALLEST_SIDE, min(longest, side or longest)) / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if 'pred_instances' in prediction.sample:
        return _draw_objects(prediction, size, scale)
    if 'pred_sem_seg' in prediction.sample:
        return _draw_map(prediction, size)
    lines = [
        (f'{prediction.categories.names[label]} {score:.0%}', prediction.categories.colours[label])
        for label, score in prediction.scores()
    ]
    return _add_legend(_resized(prediction.image, size), lines)


def write(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture in BGR; the suffix chooses the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done, content = cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    except cv2.error as error:
        raise OSError(f'{path}: pictures of this kind cannot be written') from error
    if not done:
        raise OSError(f'{path}: the picture cannot be encoded')
    path.write_bytes(content.tobytes())


def picture_suffix(picture: np.ndarray) -> str:
    """Return the suffix of the format for a picture: JPEG, or PNG beyond the largest size of JPEG."""
    return '.jpg' if max(picture.shape[:2]) <= _LARGEST_JPEG else '.png'


def write_labels(path: str | Path, prediction: Prediction) -> None:
    """Write the label map of a segmentor as a PNG with the numbers of the classes in the data and their colours."""
    categories = prediction.categories
    numbers = np.array([*categories.ids, *[255] * (256 - len(categories.ids))])
    values = numbers[prediction.label_map()]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if max(categories.ids) > 255:
        Image.fromarray(values.astype(np.uint16)).save(path)
        return
    image = Image.fromarray(values.astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[list(categories.ids)] = categories.colours
    image.putpalette(palette.tobytes())
    image.save(path)


def stack(rows: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Return pictures below one another, filled up to one width."""
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.vstack(padded)


def title_bar(text: str, width: int) -> np.ndarray:
    """Return a bar with a line of text that fits into it."""
    bar = np.full((22, width, 3), 255, np.uint8)
    scale = 0.45 * min(1, (width - 8) / cv2.getTextSize(text, _FONT, 0.45, 1)[0][0])
    cv2.putText(bar, text, (4, 15), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def _draw_objects(prediction: Prediction, size: tuple[int, int], scale: float) -> np.ndarray:
    import supervision

    detections = prediction.to_supervision()
    picture = _resized(prediction.image, size)
    if scale != 1:
        detections.xyxy = detections.xyxy * scale
        if detections.mask is not None:
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            masks = np.asarray(detections.mask).astype(np.uint8) * 255
            resized = [cv2.resize(mask, size, interpolation=method) >= 128 for mask in masks]
            detections.mask = np.array(resized, bool).reshape(len(masks), *size[::-1])
    line, text = _sizes(picture)
    colours = supervision.ColorPalette(
        [supervision.Color(*rgb) for rgb in prediction.categories.colours]
    )
    if detections.mask is not None:
        supervision.MaskAnnotator(colours, opacity=0.4).annotate(picture, detections)
        _outline(picture, detections, prediction.categories.colours, line)
        line = max(1, line // 2)
    supervision.BoxAnnotator(colours, thickness=line).annotate(picture, detections)
    labels = [
        str(name) if np.isnan(score) else f'{name} {score:.2f}'
        for name, score in zip(detections['class_name'], detections.confidence)
    ]
    shades = [_readable(rgb) for rgb in prediction.categories.colours]
    supervision.LabelAnnotator(
        colours,
        text_color=supervision.ColorPalette([supervision.Color(*shade) for shade in shades]),
        text_scale=text,
        text_thickness=max(1, round(text * 1.6)),
        text_padding=max(2, round(text * 8)),
        smart_position=True,
    ).annotate(picture, detections, labels)
    return picture


def _outline(
    picture: np.ndarray, detections: Any, colours: tuple[tuple[int, int, int], ...], line: int
) -> None:
    """Draw smooth outlines of masks; cv2 draws anti-aliased lines on fractions of pixels."""
    height, width = picture.shape[:2]
    for index, (box, label) in enumerate(zip(detections.xyxy, detections.class_id)):
        x1, y1 = np.floor(np.maximum(box[:2], 0)).astype(int) - 2
        x2, y2 = np.ceil(box[2:]).astype(int) + 3
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        mask = detections.mask[index][y1:y2, x1:x2].astype(np.uint8)
        if not mask.any():
            continue
        smooth = cv2.GaussianBlur(
            cv2.copyMakeBorder(mask * 255, 2, 2, 2, 2, cv2.BORDER_CONSTANT), (5, 5), 0
        )
        found, _ = cv2.findContours(
            (smooth > 127).astype(np.uint8),
            cv2.RETR_EXTERNAL,
            cv2.CHAIN_APPROX_NONE,
            offset=(x1 - 2, y1 - 2),
        )
        cv2.polylines(picture, found, True, colours[label][::-1], line, cv2.LINE_AA)


def _draw_map(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    categories = prediction.categories
    values = prediction.label_map()
    shades = np.zeros((256 if values.dtype == np.uint8 else 65536, 3), np.uint8)
    shades[: len(categories.colours)] = np.array(categories.colours)[:, ::-1]
    picture = prediction.image.copy()
    for top in range(0, len(values), 512):  # bands bound the memory for large images
        band = slice(top, top + 512)
        known = values[band] < len(categories.names)
        mixed = cv2.addWeighted(picture[band], 0.5, shades[values[band]], 0.5, 0)
        picture[band][known] = mixed[known]
    counts = np.bincount(values.ravel(), minlength=len(categories.names))[: len(categories.names)]
    largest = np.argsort(-counts, kind='stable')[:_LEGEND]
    shown = [label for label in largest if counts[label] >= values.size / 200]
    lines = [
        (f'{categories.names[label]} {counts[label] / values.size:.0%}', categories.colours[label])
        for label in shown
    ]
    return _add_legend(_resized(picture, size), lines)


def _add_legend(picture: np.ndarray, lines: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """Draw lines of text with a square of a colour into the upper left corner, on a darkened ground."""
    if not lines:
        return picture
    _, scale = _sizes(picture)
    scale = max(0.35, min(scale, 0.9 * len(picture) / (len(lines) * 34)))
    lines = lines[: max(1, int(len(picture) / (scale * 64)))]  # half of the height
    step, pad, thick = round(32 * scale), round(12 * scale), max(1, round(scale * 1.6))
    widths = [cv2.getTextSize(text, _FONT, scale, thick)[0][0] for text, _ in lines]
    right, bottom = 3 * pad + step + max(widths), 2 * pad + step * len(lines)
    corner = picture[:bottom, :right]
    corner[:] = (corner * 0.35).astype(np.uint8)
    for row, (text, colour) in enumerate(lines):
        top = pad + row * step
        square = (pad, top + step // 6), (pad + step * 2 // 3, top + step * 5 // 6)
        cv2.rectangle(picture, *square, colour[::-1], -1)
        at = (2 * pad + step * 2 // 3, top + round(step * 0.78))
        cv2.putText(picture, text, at, _FONT, scale, (255, 255, 255), thick, cv2.LINE_AA)
    return picture


def _sizes(picture: np.ndarray) -> tuple[int, float]:
    """Return the width of lines in pixels and the scale of text for a picture."""
    side = float(np.sqrt(picture.shape[0] * picture.shape[1]))
    return max(1, round(side / 450)), max(0.4, side / 1700)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a copy of an image with that width and height."""
    if image.shape[1::-1] == size:
        return image.copy()
    method = cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method)


def _readable(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever can be read on a colour."""
    red, green, blue = rgb
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
