"""Checks of the data and of the config that reads them, before the first step of a run.

`check_data` runs the functions of `CHECKS` in order. Each takes a `ConfiguredData` and yields findings; it may rely on
what those before it have checked. Importing this package imports mmengine and no library on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from swinv2_mm.datasets.checks.classes import (
    check_categories,
    check_folder_classes,
    check_heads,
    check_metainfo,
)
from swinv2_mm.datasets.checks.configured import ConfiguredData
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

Check = Callable[[ConfiguredData], Iterator[Finding]]
FILE_CHECKS: tuple[Check, ...] = (
    check_loaders,
    check_paths,
    check_metainfo,
    check_folder_classes,
    check_categories,
    check_heads,
)
"""Checks of the config and of paths, which build nothing."""
SAMPLE_CHECKS: tuple[Check, ...] = (
    check_building,
    check_epoch_length,
    check_single_images,
    check_annotations,
    check_label_maps,
    check_image_labels,
    check_batches,
)
"""Checks that build the data sets and run samples through their pipelines."""
CHECKS = FILE_CHECKS + SAMPLE_CHECKS


def check_data(data: ConfiguredData, checks: Iterable[Check] = CHECKS) -> Iterator[Finding]:
    """Yield what the checks find, up to and with the first check that finds an error."""
    for check in checks:
        found = list(check(data))
        yield from found
        if any(finding.severity == 'error' for finding in found):
            return


__all__ = ['CHECKS', 'FILE_CHECKS', 'SAMPLE_CHECKS', 'ConfiguredData', 'Finding', 'check_data']
