"""Sets of whole images: missing files, and classes that do not agree."""

import shutil
from pathlib import Path

import pytest
from image_files import write_cifar10, write_class_folders, write_places365_lists
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from swinv2_mm.datasets.checks import ConfiguredData
from swinv2_mm.datasets.checks.classes import (
    check_categories,
    check_folder_classes,
    check_heads,
    check_metainfo,
)
from swinv2_mm.datasets.checks.paths import check_paths
from swinv2_mm.datasets.checks.samples import check_image_labels
from swinv2_mm.datasets.digits import write_digits

pytest.importorskip('mmpretrain')
pytest.importorskip('sklearn')

CONFIGS = Path(__file__).parents[3] / 'configs/classification'
ALL = ('train', 'val', 'test')
PLACES = ['airfield', 'bakery-shop', 'zen_garden']


def config_on(monkeypatch, name: str, root: Path) -> Config:
    monkeypatch.setenv('SWINV2_MM_DATA', str(root))
    monkeypatch.setenv('SWINV2_MM_DIGITS', str(root / 'digits'))
    return Config.fromfile(next(CONFIGS.glob(f'*{name}*.py')))


def with_classes(cfg: Config, number: int) -> Config:
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = number
    return cfg


CLASSES = (check_metainfo, check_folder_classes, check_categories, check_heads)


def findings(checks, cfg, parts=ALL) -> list[str]:
    data = ConfiguredData(cfg, parts)
    return [str(finding) for check in checks for finding in check(data)]


def paths(cfg, parts=ALL) -> list[str]:
    return findings([check_paths], cfg, parts)


def classes(cfg, parts=ALL) -> list[str]:
    """Return what the first check of the classes finds that finds anything."""
    return next(filter(None, (findings([check], cfg, parts) for check in CLASSES)), [])


@pytest.fixture(scope='module')
def whole_digits(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_digits(root / 'digits')
    return root


@pytest.fixture
def digits(whole_digits, tmp_path, monkeypatch):
    shutil.copytree(whole_digits / 'digits', tmp_path / 'digits')
    return config_on(monkeypatch, 'digits', tmp_path)


def test_missing_digits_name_the_converter(tmp_path, monkeypatch):
    cfg = config_on(monkeypatch, 'digits', tmp_path)
    message = paths(cfg)[0]
    assert f'expected: images in {tmp_path}/digits/train/<class>/.' in message
    assert message.endswith(f'python tools/dataset_converters/digits.py {tmp_path}/digits')


def test_complete_digits_pass(digits):
    assert paths(digits) == []
    assert classes(digits) == []


def test_a_folder_without_classes(digits, tmp_path):
    shutil.rmtree(tmp_path / 'digits/val')
    (tmp_path / 'digits/val').mkdir()
    message = paths(digits)[0]
    assert f'{tmp_path}/digits/val of val_dataloader.dataset (CustomDataset) has no' in message
    assert 'val/<class>/*.jpg' in message


def test_missing_imagenet_names_its_layout(tmp_path, monkeypatch):
    cfg = config_on(monkeypatch, 'imagenet', tmp_path)
    message = paths(cfg)[0]
    assert f'images in {tmp_path}/imagenet/train/<class>/' in message
    assert 'SWINV2_MM_DATA' in message


def test_imagenet_with_lists_needs_no_class_folders(tmp_path, monkeypatch):
    for split in ('train', 'val'):
        (tmp_path / 'imagenet' / split).mkdir(parents=True)
    cfg = config_on(monkeypatch, 'imagenet', tmp_path)
    assert 'has no folders in it' in paths(cfg)[0]
    (tmp_path / 'imagenet/meta').mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'imagenet/meta/{split}.txt').write_text('a.jpg 0\n')
    assert paths(cfg) == []
    assert classes(cfg) == []


def test_other_data_in_the_place_of_imagenet(tmp_path, monkeypatch):
    write_class_folders(tmp_path / 'imagenet', PLACES)
    cfg = with_classes(config_on(monkeypatch, 'imagenet', tmp_path), 3)
    assert paths(cfg) == []
    message = classes(cfg)[0]
    assert '(ImageNet) has 1000 classes and its files 3 (airfield, bakery-shop, zen_' in message
    assert "type='CustomDataset'" in message
    for part in ALL:
        dataset = cfg[f'{part}_dataloader'].dataset
        dataset.type = 'CustomDataset'
        dataset.data_prefix = dataset.pop('split')
    assert paths(cfg) == []
    assert classes(cfg) == []


def test_missing_cifar_10_says_where_to_get_it_and_how_to_ask_for_it(tmp_path, monkeypatch):
    cfg = config_on(monkeypatch, 'cifar10', tmp_path)
    message = paths(cfg)[0]
    assert f'{tmp_path}/cifar10/cifar-10-batches-py/data_batch_1 of train_dataloader' in message
    assert (
        f'Unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in {tmp_path}' in message
    )
    assert '--cfg-options train_dataloader.dataset.download=True' in message
    cfg.train_dataloader.dataset.download = True
    assert 'val_dataloader.dataset.download=True' in paths(cfg)[0]
    assert not list(tmp_path.iterdir())


def test_mmpretrains_own_cifar_10_needs_to_be_asked_too(tmp_path, monkeypatch):
    """Its class downloads by default, wherever it runs."""
    cfg = config_on(monkeypatch, 'cifar10', tmp_path)
    cfg.train_dataloader.dataset.type = 'CIFAR10'
    del cfg.train_dataloader.dataset.download
    assert 'data_batch_1' in paths(cfg, ('train',))[0]


def test_other_sets_that_mmpretrain_would_download_need_a_word_too(tmp_path, monkeypatch):
    cfg = config_on(monkeypatch, 'cifar10', tmp_path)
    cfg.train_dataloader.dataset.update(type='CIFAR100', data_root=str(tmp_path))
    del cfg.train_dataloader.dataset.download
    message = paths(cfg, ('train',))[0]
    assert 'CIFAR100) would download' in message and 'dataset.download=True' in message
    cfg.train_dataloader.dataset.download = False
    assert paths(cfg, ('train',)) == []


def test_cifar_10_is_complete_or_not(tmp_path, monkeypatch):
    write_cifar10(tmp_path / 'cifar10')
    cfg = config_on(monkeypatch, 'cifar10', tmp_path)
    assert paths(cfg) == []
    assert classes(cfg) == []
    assert 'has 10 classes' in classes(with_classes(cfg, 100))[0]
    (tmp_path / 'cifar10/cifar-10-batches-py/data_batch_4').unlink()
    assert 'data_batch_4 of train_dataloader' in paths(cfg)[0]
    assert paths(cfg, ('val',)) == []


def test_missing_places_names_both_layouts(tmp_path, monkeypatch):
    cfg = config_on(monkeypatch, 'places365', tmp_path)
    message = paths(cfg)[0]
    root = tmp_path / 'places365_standard'
    assert f'{root}/train/<class>/*.jpg' in message
    assert f'{root}/places365_train_standard.txt' in message
    assert 'places365standard_easyformat.tar' in message


@pytest.mark.parametrize('write', [write_class_folders, write_places365_lists])
def test_places_with_another_number_of_classes(tmp_path, monkeypatch, write):
    write(tmp_path / 'places365_standard', PLACES)
    cfg = config_on(monkeypatch, 'places365', tmp_path)
    assert paths(cfg) == []
    message = classes(cfg)[0]
    assert 'model.data_preprocessor.num_classes is 365' in message
    assert 'has 3 classes (airfield, bakery-shop, zen_garden)' in message
    assert 'num_classes=3 in every head and in model.data_preprocessor' in message
    assert classes(with_classes(cfg, 3)) == []


def test_a_broken_list_of_places(tmp_path, monkeypatch):
    root = tmp_path / 'places365_standard'
    write_places365_lists(root, PLACES)
    (root / 'categories_places365.txt').unlink()
    cfg = with_classes(config_on(monkeypatch, 'places365', tmp_path), 3)
    assert classes(cfg) == []
    (root / 'places365_val.txt').write_text('Places365_val_00000001.jpg\n')
    assert 'places365_val.txt, line 1' in classes(cfg, ('val',))[0]


def test_classes_that_one_split_lacks(digits, tmp_path):
    shutil.rmtree(tmp_path / 'digits/val/4')
    message = classes(digits, ('train', 'val'))[0]
    assert 'train_dataloader.dataset and val_dataloader.dataset have other classes' in message
    assert '(10 and 9; not in both: 4)' in message


def test_a_hidden_folder_counts_as_a_class_as_it_does_for_mmpretrain(digits, tmp_path):
    (tmp_path / 'digits/train/.ipynb_checkpoints').mkdir()
    assert '.ipynb_checkpoints' in classes(digits, ('train',))[0]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(dict(digits.train_dataloader.dataset))
    assert dataset.metainfo['classes'][0] == '.ipynb_checkpoints'


def labels(cfg: Config) -> list[str]:
    return findings([check_image_labels], cfg, ('train',))


def test_labels_in_range_and_readable_pictures_pass(digits):
    assert labels(digits) == []
    del digits.model.head.num_classes
    assert labels(digits) == []


def test_labels_out_of_range(digits, tmp_path):
    listing = tmp_path / 'list.txt'
    names = [f'{path.parent.name}/{path.name}' for path in (tmp_path / 'digits/train/0').iterdir()]
    listing.write_text(''.join(f'{name} {index // 100}\n' for index, name in enumerate(names)))
    digits.train_dataloader.dataset.ann_file = str(listing)
    assert labels(with_classes(digits, 2)) == []
    (message,) = labels(with_classes(digits, 1))
    assert 'has the label [1]: expected 0 to 0 for num_classes=1' in message


def test_a_picture_that_cannot_be_read_or_found(digits, tmp_path):
    first = min((tmp_path / 'digits/train/0').iterdir())
    first.write_bytes(b'no picture')
    assert f'{first} cannot be read as a picture' in labels(digits)[0]
    data = ConfiguredData(digits, ('train',))
    data.dataset('train')
    first.unlink()
    (finding,) = check_image_labels(data)
    assert str(finding).startswith(f'{first} does not exist')
