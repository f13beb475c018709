"""Metrics on disk: `metrics.json` in the work directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = 'metrics.json'


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns metrics under plain keys.

    The evaluator's prefix goes (`coco/bbox_mAP` becomes `bbox_mAP`) unless two keys would become one. Values that json
    does not know, NaN and infinity, become None.
    """
    short = [key.rsplit('/', 1)[-1] for key in metrics]
    plain: dict[str, float | None] = {}
    for key, name in zip(metrics, short):
        value = float(metrics[key])
        plain[name if short.count(name) == 1 else key] = (
            round(value, 6) if math.isfinite(value) else None
        )
    return plain


def write_metrics(metrics: Mapping[str, Any], work_dir: str | Path) -> Path:
    """Writes `metrics.json` and returns its path."""
    path = Path(work_dir) / METRICS_FILE
    path.write_text(json.dumps(plain_metrics(metrics), indent=2) + '\n', encoding='utf-8')
    return path


def format_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the metrics as lines, one for each kind of result (`bbox`, `segm`)."""
    lines: dict[str, list[str]] = {}
    for name, value in plain_metrics(metrics).items():
        kind, _, rest = name.partition('_')
        # -1 is pycocotools' word for "there are no such objects"
        shown = '-' if value is None or value == -1 else f'{value:g}'
        lines.setdefault(f'{kind}: ' if rest else '', []).append(f'{rest or name} {shown}')
    return [kind + '  '.join(values) for kind, values in lines.items()]
