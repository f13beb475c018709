"""Metrics on disk: `metrics.json` in the work directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swinv2_mm.engine.checkpoint_files import replace_file

METRICS_FILE = 'metrics.json'


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics under plain keys.

    The evaluator's prefix is removed (`coco/bbox_mAP` becomes `bbox_mAP`) unless two keys would become one. Values that
    json cannot express, NaN and infinity, become None.
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
    """Write `metrics.json` and return its path."""
    path = Path(work_dir) / METRICS_FILE
    replace_file(path, f'{json.dumps(plain_metrics(metrics), indent=2)}\n'.encode())
    return path
