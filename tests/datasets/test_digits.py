"""The handwritten digits as a folder of pictures."""

import shutil

import cv2
import numpy as np
import pytest
from image_files import digit_pictures

from swinv2_mm.datasets.digits import DIGIT_SPLITS, enlarge, write_digits

datasets = pytest.importorskip('sklearn.datasets')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits') / 'set'
    assert write_digits(root) is True
    return root


def numbers(root, split):
    """The numbers of the pictures of a split, by digit."""
    return {
        digit: {int(path.stem) for path in (root / split / str(digit)).iterdir()}
        for digit in range(10)
    }


def test_every_digit_is_there_once_with_its_own_pixels(root):
    found = datasets.load_digits()
    seen = 0
    for path in root.glob('*/*/*.png'):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        number = int(path.stem)
        assert found.target[number] == int(path.parent.name)
        assert picture.shape == (32, 32)
        # the middle of each block is the original's value, but for the smoothing
        original = found.images[number] * 255 / 16
        assert np.abs(cv2.resize(picture.astype(float), (8, 8)) - original).mean() < 20
        seen += 1
    assert seen == len(found.target) == sum(DIGIT_SPLITS.values())


def test_a_fifth_of_each_digit_is_held_out(root):
    train, val = numbers(root, 'train'), numbers(root, 'val')
    assert sum(map(len, train.values())) == 1437
    assert sum(map(len, val.values())) == 360
    for digit in range(10):
        assert not train[digit] & val[digit]
        total = len(train[digit] | val[digit])
        assert total == int((datasets.load_digits().target == digit).sum())
        assert len(val[digit]) / total == pytest.approx(0.2, abs=0.005)


def test_the_split_is_the_same_every_time(root, tmp_path):
    assert write_digits(tmp_path / 'again')
    for split in DIGIT_SPLITS:
        assert numbers(tmp_path / 'again', split) == numbers(root, split)


def test_a_complete_set_is_left_as_it_is(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*.png')}
    assert write_digits(root) is False
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*.png')}


def test_something_else_is_left_alone(root, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='left alone'):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
    part = shutil.copytree(root, tmp_path / 'part')
    next(part.glob('val/3/*.png')).unlink()
    with pytest.raises(FileExistsError, match='the whole set'):
        write_digits(part)


def test_values_span_the_bytes():
    assert enlarge(np.zeros((8, 8))).max() == 0
    assert enlarge(np.full((8, 8), 16.0)).min() == 255
    pictures, labels = digit_pictures(20)
    assert pictures.shape == (20, 32, 32, 3)
    assert labels == [*range(10), *range(10)]
