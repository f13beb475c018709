"""Checks of the data and of the config that reads them, before the first step of a run.

`check_data` runs the functions of `STAGES` in order. Each takes a `ConfiguredData` and yields findings; it may rely on
what the stages before it have checked. Importing this package imports mmengine and no library on top of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from swinv2_mm.datasets.checks.annotations import check_json
from swinv2_mm.datasets.checks.classes import (
    check_categories,
    check_folder_classes,
    check_heads,
    check_metainfo,
)
from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.files import check_images, check_labels, check_suffixes
from swinv2_mm.datasets.checks.finding import Finding
from swinv2_mm.datasets.checks.loaders import (
    check_batches,
    check_epoch_length,
    check_loaders,
    check_single_images,
)
from swinv2_mm.datasets.checks.paths import check_paths
from swinv2_mm.datasets.checks.samples import (
    check_annotations,
    check_building,
    check_image_labels,
    check_label_maps,
)
from swinv2_mm.datasets.checks.settings import (
    check_ann_files,
    check_checkpoint_classes,
    check_palettes,
    check_single_classes,
    check_zero_label_steps,
    check_zero_labels,
)

Check = Callable[[ConfiguredData], Iterator[Finding]]
FILE_STAGES: tuple[tuple[Check, ...], ...] = (
    (check_loaders,),
    (check_ann_files,),
    (check_paths,),
    (check_metainfo,),
    (check_folder_classes, check_categories),
    (check_heads, check_palettes, check_zero_label_steps, check_single_classes, check_suffixes),
    (check_json, check_checkpoint_classes),
)
"""Checks of the config, of paths and of annotation files, which build nothing."""
READING_STAGES: tuple[tuple[Check, ...], ...] = (
    (check_building,),
    (check_images, check_labels, check_zero_labels),
)
"""Checks that build the data sets and read images and label files."""
PIPELINE_STAGES: tuple[tuple[Check, ...], ...] = (
    (check_epoch_length, check_single_images),
    (check_annotations, check_label_maps, check_image_labels),
    (check_batches,),
)
"""Checks that build the model and run a few samples through the pipelines."""
STAGES = FILE_STAGES + READING_STAGES + PIPELINE_STAGES


def check_data(
    data: ConfiguredData, stages: Iterable[tuple[Check, ...]] = STAGES
) -> Iterator[Finding]:
    """Yield what the checks find, up to and with the first stage that finds an error."""
    for stage in stages:
        stop = False
        for check in stage:
            for finding in check(data):
                kind = finding.kind or check.__name__.removeprefix('check_').replace('_', '-')
                stop |= finding.severity == 'error'
                yield dataclasses.replace(finding, kind=kind)
        if stop:
            return


__all__ = [
    'FILE_STAGES',
    'PIPELINE_STAGES',
    'READING_STAGES',
    'STAGES',
    'ConfiguredData',
    'Finding',
    'check_data',
]
