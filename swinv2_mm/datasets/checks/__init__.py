"""Checks of the data and of the config that reads them, before the first step of a run.

`check_data` runs the functions of `STAGES` in order. Each takes a `ConfiguredData` and yields findings; it may rely on
what the stages before it have checked. Importing this package imports mmengine and no library on top of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from swinv2_mm.datasets.checks import classes, files, model, samples, settings
from swinv2_mm.datasets.checks.annotations import check_json
from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding
from swinv2_mm.datasets.checks.paths import check_paths

Check = Callable[[ConfiguredData], Iterator[Finding]]
FILE_STAGES: tuple[tuple[Check, ...], ...] = (
    (settings.check_loaders,),
    (settings.check_ann_files,),
    (check_paths,),
    (classes.check_metainfo,),
    (classes.check_folder_classes, classes.check_categories),
    (
        *(classes.check_heads, settings.check_palettes, settings.check_zero_label_steps),
        *(settings.check_single_classes, files.check_suffixes),
    ),
    (check_json, settings.check_checkpoint_classes),
)
"""Checks of the config, of paths and of annotation files, which build nothing."""
READING_STAGES: tuple[tuple[Check, ...], ...] = (
    (samples.check_building,),
    (files.check_images, files.check_labels, settings.check_zero_labels),
)
"""Checks that build the data sets and read images and label files."""
PIPELINE_STAGES: tuple[tuple[Check, ...], ...] = (
    (model.check_model, settings.check_epoch_length, settings.check_single_images),
    (samples.check_annotations, samples.check_label_maps, samples.check_image_labels),
    (settings.check_batches,),
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
