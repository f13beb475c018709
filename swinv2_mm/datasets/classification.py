"""CIFAR-10 and Places365 for mmpretrain. Imported when a config names one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine import dist
from mmpretrain.datasets import CIFAR10, CustomDataset
from mmpretrain.datasets.utils import download_and_extract_archive

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.published_sets import (
    cifar10_batches,
    find_places365,
    read_batch,
    read_categories,
    read_listing,
)
from swinv2_mm.registry import DATASETS


@DATASETS.register_module()
class LocalCIFAR10(CIFAR10):
    """CIFAR-10 from the files of its Python version, which are read without running what they may contain.

    Unlike its parent it downloads nothing unless told to, and takes files with any check sums.

    Args:
        data_root: Folder that holds `cifar-10-batches-py`.
        split: `'train'` or `'test'`.
        download: Whether to fetch and unpack the official archive (170 MB) if the files are not there.
        **options: Those of mmpretrain's `BaseDataset`.
    """

    def __init__(
        self, data_root: str, split: str = 'train', download: bool = False, **options: Any
    ) -> None:
        super().__init__(data_root=data_root, split=split, download=download, **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per picture: `img`, `(32, 32, 3)` RGB bytes, and `gt_label`."""
        root = self.data_prefix['root']
        paths = cifar10_batches(root, self.split)
        if self.download and dist.is_main_process() and not all(path.is_file() for path in paths):
            try:
                Path(root).mkdir(parents=True, exist_ok=True)
                download_and_extract_archive(
                    self.url, root, filename=self.filename, md5=self.tgz_md5
                )
            except (OSError, RuntimeError) as error:
                raise ImageSetError(
                    f'CIFAR-10 cannot be downloaded to {root} ({error}): unpack {self.url} there by hand'
                ) from error
        dist.barrier()
        return [
            {'img': image, 'gt_label': label}
            for path in paths
            for image, label in zip(*read_batch(path))
        ]


@DATASETS.register_module()
class Places365(CustomDataset):
    """Places365-Standard in either of its layouts, see `swinv2_mm.datasets.published_sets`.

    The names of the classes are those of the folders, or of `categories_places365.txt`.

    Args:
        data_root: Folder of the set.
        split: `'train'` or `'val'`.
        **options: Those of mmpretrain's `CustomDataset`.
    """

    def __init__(self, data_root: str, split: str = 'train', **options: Any) -> None:
        self.split = split
        found = find_places365(data_root, split)
        super().__init__(
            data_prefix=str(found.images.resolve()),
            ann_file=str(found.listing.resolve()) if found.listing else '',
            **options,
        )
        if found.categories and self.CLASSES is None:
            self._metainfo['classes'] = tuple(read_categories(found.categories))

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dict per picture: `img_path` and `gt_label`."""
        if not self.ann_file:
            return super().load_data_list()
        folder = Path(self.img_prefix)
        return [
            {'img_path': str(folder / name), 'gt_label': label}
            for name, label in read_listing(self.ann_file)
        ]
