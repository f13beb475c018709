"""Faults of image and label files, each written into a set without faults."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from swinv2_mm.datasets.checks.files import check_images, check_labels, check_suffixes

TRAIN = ('train',)
IMAGE, LABELS = 'images/training/shape_00003.png', 'annotations/training'
LABEL = f'{LABELS}/shape_00003.png'


@pytest.fixture
def root(shapes_root, tmp_path):
    return shutil.copytree(shapes_root, tmp_path / 'own')


@pytest.fixture
def segmentation(segmentation_cfg, root):
    for part in ('train', 'val'):
        segmentation_cfg[f'{part}_dataloader'].dataset.data_root = str(root)
    return segmentation_cfg


@pytest.fixture
def detection(detection_cfg, root):
    detection_cfg.train_dataloader.dataset.data_root = str(root)
    return detection_cfg


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def write(mode=None, size=None, **options):
    """Return a function that writes an image of a mode or size in the place of one."""

    def apply(path):
        image = Image.open(path).resize(size or (64, 64))
        form = options.pop('format', 'PNG')
        array = np.asarray(image.convert('L')).astype(np.uint16) * 100
        image = Image.fromarray(array) if mode == 'I;16' else image.convert(mode or 'RGB')
        image.save(path, form, **options)

    return apply


def truncated_jpeg(path):
    rough = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(rough).save(path, 'JPEG')
    cut(path)


def renamed(path):
    path.rename(path.with_name('SHAPE_00003.PNG'))


@pytest.mark.parametrize(
    ('damage', 'severity', 'text'),
    [
        (lambda path: path.write_bytes(b''), 'error', 'are empty: '),
        (lambda path: path.write_text('a text'), 'error', 'are not images: '),
        (cut, 'error', 'are damaged or cut off: '),
        (truncated_jpeg, 'error', 'are damaged or cut off: '),
        (write('CMYK', format='JPEG'), 'warning', 'are CMYK'),
        (write('I;16'), 'warning', 'have more than 8 bits'),
        (write('RGBA'), 'warning', 'have an alpha channel'),
        (write('LA'), 'warning', 'have an alpha channel'),
        (write(size=(1, 1)), 'warning', 'are smaller than 4 pixels'),
        (write(size=(20000, 20)), 'warning', 'have sides of a ratio above 20'),
    ],
)
def test_an_image(finds, segmentation, root, damage, severity, text):
    damage(root / IMAGE)
    (message,) = finds(check_images, segmentation, TRAIN)
    assert message.startswith(
        f'{severity}: 1 of 6 image files read of train_dataloader.dataset {text}'
    )
    assert str(root / IMAGE) in message


@pytest.mark.parametrize(
    ('damage', 'text'),
    [
        (os.unlink, 'do not exist: '),
        (renamed, 'do not exist (there is SHAPE_00003.PNG): '),
        (lambda path: path.unlink() or path.mkdir(), 'cannot be opened (Is a directory): '),
    ],
)
def test_an_image_that_is_listed_and_missing(finds, detection, root, damage, text):
    damage(root / IMAGE)
    (message,) = finds(check_images, detection, TRAIN)
    assert message.startswith(f'error: 1 of 6 image files read of train_dataloader.dataset {text}')


def test_an_image_that_is_listed_with_backslashes(finds, detection, root):
    path = root / 'annotations/instances_training.json'
    text = path.read_text()
    path.write_text(text.replace('shape_00003.png', r'..\\training\\shape_00003.png'))
    (message,) = finds(check_images, detection, TRAIN)
    assert r'do not exist (there are files with / instead of \ in the name): ' in message


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1'])
def test_images_of_usual_kinds_pass(finds, segmentation, root, mode):
    write(mode)(root / IMAGE)
    assert finds([check_images, check_labels], segmentation) == []


def test_names_that_are_not_ascii_pass(finds, segmentation, root):
    for folder in ('images/training', LABELS):
        (root / folder / 'shape_00003.png').rename(root / folder / 'grün_日本.png')
    assert finds([check_images, check_labels], segmentation, TRAIN) == []


def test_bytes_in_a_name_that_are_not_utf_8_can_be_printed(finds, segmentation, root):
    name = os.fsdecode(b'shape_\xff.png')
    (root / IMAGE).rename(root / 'images/training' / name)
    (root / 'images/training' / name).write_bytes(b'')
    (message,) = finds(check_images, segmentation, TRAIN)
    assert 'shape_\\udcff.png' in message.encode('utf-8').decode()


def test_another_size_than_in_the_json(finds, detection, root):
    write(size=(50, 64))(root / IMAGE)
    (message,) = finds(check_images, detection, TRAIN)
    assert message.startswith('error: 1 of 6') and 'another width and height' in message


def rotate_by_exif(path, size):
    image = Image.new('RGB', size)
    exif = image.getexif()
    exif[274] = 6
    image.save(path, 'JPEG', exif=exif)


def test_rotated_photos_whose_annotations_are_for_the_unrotated(finds, detection, root):
    import json

    path = root / 'annotations/instances_training.json'
    coco = json.loads(path.read_text())
    for image in coco['images']:
        image.update(width=96, height=64)
        rotate_by_exif(root / 'images/training' / image['file_name'], (96, 64))
    path.write_text(json.dumps(coco))
    (message,) = finds(check_images, detection, TRAIN)
    assert message.startswith('error: 6 of 6') and 'are rotated by EXIF when read' in message
    detection.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    assert finds(check_images, detection, TRAIN) == []
    del detection.train_dataloader.dataset.pipeline[0].color_type
    for image in coco['images']:
        image.update(width=64, height=96)
    path.write_text(json.dumps(coco))
    assert finds(check_images, detection, TRAIN) == []


def test_a_rotated_photo_whose_labels_are_not(finds, segmentation, root):
    rotate_by_exif(root / IMAGE, (96, 64))
    write('L', (96, 64))(root / LABEL)
    relabel(root, lambda labels: labels * 0 + 1)
    (message,) = finds(check_labels, segmentation, TRAIN)
    assert 'have another size than their images' in message


@pytest.mark.parametrize(
    ('damage', 'text'),
    [
        (os.unlink, 'do not exist: '),
        (lambda path: path.write_bytes(b''), 'are empty: '),
        (lambda path: path.write_text('a text'), 'are not images: '),
        (cut, 'are damaged or cut off: '),
        (write('RGB'), 'have several channels'),
        (write('RGBA'), 'have several channels'),
        (write('LA'), 'have several channels'),
        (write('I;16'), 'hold numbers above 255'),
        (lambda path: Image.new('L', (64, 64), 1).save(path, 'JPEG'), 'are JPEG'),
        (
            lambda path: Image.new('L', (64, 50), 1).save(path),
            'have another size than their images',
        ),
        (
            lambda path: Image.new('L', (64, 64), 9).save(path),
            'hold the labels [9]: expected 0 to 4',
        ),
    ],
)
def test_a_label_file(finds, segmentation, root, damage, text):
    damage(root / LABEL)
    (message,) = finds(check_labels, segmentation, TRAIN)
    assert message.startswith(f'error: 1 of 6 label files read of train_dataloader.dataset {text}')
    assert str(root / LABEL) in message


def test_the_validation_set_is_looked_at_too(finds, segmentation, root):
    (root / 'annotations/validation/shape_00001.png').write_bytes(b'')
    (message,) = finds(check_labels, segmentation)
    assert 'label files read of val_dataloader.dataset are empty' in message


def relabel(root, change):
    for path in (root / LABELS).iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(change(labels).astype(np.uint8)).save(path)


def with_classes(cfg, number):
    cfg.model.decode_head.num_classes = number
    for part in ('train', 'val', 'test'):
        classes = tuple(f'class {index}' for index in range(number))
        cfg[f'{part}_dataloader'].dataset.metainfo = dict(classes=classes)
    return cfg


def test_palette_and_one_bit_labels_pass(finds, segmentation, root):
    for path in (root / LABELS).iterdir():
        image = Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8))
        image.putpalette([0, 0, 0, 200, 30, 90])
        image.save(path)
    assert finds(check_labels, with_classes(segmentation, 2), TRAIN) == []
    for path in (root / LABELS).iterdir():
        Image.fromarray(np.array(Image.open(path)) > 0).save(path)
    assert finds(check_labels, segmentation, TRAIN) == []


def test_masks_of_0_and_255(finds, segmentation, root):
    relabel(root, lambda labels: (labels > 0) * 255)
    (message,) = finds(check_labels, with_classes(segmentation, 2), TRAIN)
    assert message.startswith('error: ') and 'hold only 0 and 255, and 255 means ignored' in message


def reduce_zero(cfg):
    cfg.train_dataloader.dataset.reduce_zero_label = True
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
    return cfg


def test_zero_that_should_not_be_ignored(finds, segmentation):
    (message,) = finds(check_labels, reduce_zero(segmentation), TRAIN)
    assert 'hold the labels 0 to 4, and reduce_zero_label=True turns 0 into ignored' in message


def test_zero_that_should_be_ignored(finds, segmentation, root):
    relabel(root, lambda labels: labels + 1)
    (message,) = finds(check_labels, segmentation, TRAIN)
    assert 'hold the labels [5]' in message and 'reduce_zero_label=True if 0 means' in message
    assert finds(check_labels, reduce_zero(segmentation), TRAIN) == []


def test_a_class_that_is_nowhere(finds, segmentation, root):
    relabel(root, lambda labels: np.where(labels == 4, 0, labels))
    (message,) = finds(check_labels, segmentation, TRAIN)
    assert message.startswith('warning: 1 of 5 classes are in none of 6 label files read')
    assert message.endswith(': star.')


def test_some_of_the_classes_of_a_stock_set(finds, segmentation):
    """Pixels of the other classes do not become background."""
    dataset = segmentation.train_dataloader.dataset
    dataset.update(
        type='CityscapesDataset', metainfo=dict(classes=('road', 'sidewalk', 'building', 'wall'))
    )
    segmentation.model.decode_head.num_classes = 4
    (message,) = finds(check_labels, segmentation, TRAIN)
    assert (
        message.startswith('warning: ')
        and 'pixels of the others are ignored, not background' in message
    )


def test_images_of_another_suffix(finds, segmentation, root):
    assert finds(check_suffixes, segmentation, TRAIN) == []
    (root / IMAGE).rename((root / IMAGE).with_suffix('.jpeg'))
    (message,) = finds(check_suffixes, segmentation, TRAIN)
    assert message.startswith('error: 1 of 6 images in ')
    assert "do not end in img_suffix='.png' and are passed over: shape_00003.jpeg" in message
