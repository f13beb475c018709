"""CIFAR-10 and Places365 as they are on disk, made of real pictures."""

import pickle
import struct
import subprocess
import sys

import mmengine.fileio
import numpy as np
import pytest
from image_files import (
    CIFAR10_CLASSES,
    write_cifar10,
    write_class_folders,
    write_places365_lists,
)
from mmengine.registry import DATASETS, DefaultScope

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.published_sets import (
    CIFAR10_FOLDER,
    find_places365,
    read_batch,
    read_categories,
    read_listing,
)

pytest.importorskip('sklearn.datasets')
PLACES = ['airfield', 'airport_terminal', 'bakery-shop', 'zen_garden']


def build(kind, **options):
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(dict(type=f'swinv2_mm.{kind}', pipeline=[], **options))


@pytest.fixture
def cifar(tmp_path):
    return tmp_path, *write_cifar10(tmp_path)


def test_batches_written_by_python_2_are_read(cifar):
    root, pictures, labels = cifar
    raw = (root / CIFAR10_FOLDER / 'data_batch_1').read_bytes()
    # the marks of an official file: protocol 2, byte strings, numpy's old module
    assert raw.startswith(b'\x80\x02')
    assert b'U\x04data' in raw and b'cnumpy.core.multiarray\n_reconstruct' in raw
    assert pickle.loads(raw, encoding='latin1').keys() >= {'data', 'labels', 'filenames'}
    read, numbers = read_batch(root / CIFAR10_FOLDER / 'data_batch_1')
    np.testing.assert_array_equal(read, pictures[:6])
    assert numbers == labels[:6]


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('as_bytes', [True, False])
def test_batches_written_by_python_3_are_read(tmp_path, protocol, as_bytes):
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    batch = {'data': data, 'labels': [3, 9]}
    if as_bytes:
        batch = {key.encode(): value for key, value in batch.items()}
    path = tmp_path / 'batch'
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    pictures, labels = read_batch(path)
    assert labels == [3, 9]
    np.testing.assert_array_equal(pictures[1, :, :, 2].ravel(), data[1, 2048:])


class Hostile:
    def __reduce__(self):
        return (print, ('this ran',))


def test_code_in_a_batch_does_not_run(tmp_path, capsys):
    path = tmp_path / 'batch'
    path.write_bytes(pickle.dumps({'data': Hostile(), 'labels': []}))
    with pytest.raises(ImageSetError, match=r'is damaged: it asks for builtins\.print'):
        read_batch(path)
    assert 'this ran' not in capsys.readouterr().out


def _crafted(kind):
    """Return a pickle that makes numpy take bytes of the file for addresses, which crashes the process."""
    text = lambda text: b'X' + struct.pack('<I', len(text)) + text.encode()  # noqa: E731
    dtype = b'cnumpy\ndtype\n(' + text('O8') + b'K\x00K\x01tR'
    raw = b'B' + struct.pack('<I', 8) + b'A' * 8
    made = {
        'array': b'cnumpy\nndarray\n(K\x01\x85' + dtype + raw + b'tR',
        'buffer': b'cnumpy._core.numeric\n_frombuffer\n(' + raw + dtype + b'K\x01\x85' + text('C') + b'tR',
        'state': b'cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85B\x01\x00\x00\x00btR'
        + b'(K\x01K\x01\x85' + dtype + b'\x89' + raw + b'tb',
        'fields': b'cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85B\x01\x00\x00\x00btR'
        + b'(K\x01K\x01\x85cnumpy\ndtype\n(' + text('V8') + b'K\x00K\x01tR(K\x03' + text('|') + b'N('
        + text('a') + b't}' + text('a') + b'(' + dtype + b'K\x00tsK\x08K\x01K?tb\x89' + raw + b'tb',
    }[kind]  # fmt: skip
    return b'\x80\x03}(' + text('data') + made + text('labels') + b'](K\x01eu.'


@pytest.mark.parametrize('kind', ['array', 'buffer', 'state', 'fields'])
def test_arrays_of_objects_are_refused(tmp_path, kind):
    """In a process of its own, which reads and prints the batch."""
    path = tmp_path / 'batch'
    path.write_bytes(_crafted(kind))
    code = 'import sys; from swinv2_mm.datasets.published_sets import read_batch; read_batch(sys.argv[1])'
    done = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and 'ImageSetError' in done.stderr
    assert 'Unsupported' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    'batch',
    [
        b'not a pickle',
        b'',
        pickle.dumps([1, 2]),
        pickle.dumps({'data': np.zeros((2, 3072), np.uint8), 'fine_labels': [3, 4]}),
        pickle.dumps({'data': np.zeros((2, 3072), np.uint8), 'labels': [3]}),
        pickle.dumps({'data': np.zeros((1, 3072), np.uint8), 'labels': [10]}),
        pickle.dumps({'data': np.zeros((1, 3072), np.float32), 'labels': [1]}),
    ],
)
def test_other_files_are_told_from_a_batch(tmp_path, batch):
    path = tmp_path / 'batch'
    path.write_bytes(batch)
    with pytest.raises(ImageSetError, match='is not a batch of CIFAR-10, or is damaged'):
        read_batch(path)


def test_a_batch_that_was_cut_short(cifar):
    path = cifar[0] / CIFAR10_FOLDER / 'test_batch'
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageSetError, match='test_batch is not a batch of CIFAR-10, or is damaged'):
        read_batch(path)


def test_cifar_10_whatever_its_check_sums(cifar):
    root, pictures, labels = cifar
    train = build('LocalCIFAR10', data_root=str(root), split='train')
    assert len(train) == len(labels) == 30
    assert train.metainfo['classes'] == CIFAR10_CLASSES
    for index in (0, 7, 29):
        np.testing.assert_array_equal(train[index]['img'], pictures[index])
        assert train[index]['gt_label'] == labels[index]
    assert len(build('LocalCIFAR10', data_root=str(root), split='test')) == 6


def test_cifar_10_has_the_classes_and_files_of_mmpretrain():
    cifar = pytest.importorskip('mmpretrain.datasets').CIFAR10
    from swinv2_mm.datasets.published_sets import CIFAR10_BATCHES, CIFAR10_URL

    assert tuple(cifar.METAINFO['classes']) == CIFAR10_CLASSES
    assert cifar.base_folder == CIFAR10_FOLDER
    assert cifar.url == CIFAR10_URL
    assert tuple(name for name, _ in cifar.train_list) == CIFAR10_BATCHES['train']
    assert tuple(name for name, _ in cifar.test_list) == CIFAR10_BATCHES['test']


def test_cifar_10_is_not_downloaded_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match='data_batch_1'):
        build('LocalCIFAR10', data_root=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_places_in_folders_and_in_lists_are_one_set(tmp_path, split):
    write_class_folders(tmp_path / 'easy', PLACES)
    write_places365_lists(tmp_path / 'lists', PLACES)
    easy = build('Places365', data_root=str(tmp_path / 'easy'), split=split)
    lists = build('Places365', data_root=str(tmp_path / 'lists'), split=split)
    for dataset in (easy, lists):
        assert dataset.metainfo['classes'] == tuple(PLACES)
        assert dataset.get_gt_labels().tolist() == [0, 1, 2, 3]
        assert all(mmengine.fileio.exists(dataset[index]['img_path']) for index in range(4))
    assert '/easy/' in easy[0]['img_path'] and '/lists/' in lists[0]['img_path']


def test_the_slash_before_each_name_of_the_official_list_means_nothing(tmp_path):
    """Joined as it is, it would lead away from the folder of pictures."""
    listed = write_places365_lists(tmp_path, PLACES)
    assert listed[2] == ('/b/bakery-shop/00000001.jpg', 2)
    assert read_listing(tmp_path / 'places365_train_standard.txt') == [
        (name[1:], label) for name, label in listed
    ]
    assert read_categories(tmp_path / 'categories_places365.txt') == PLACES


def test_places_with_relative_paths(tmp_path, monkeypatch):
    write_places365_lists(tmp_path / 'places', PLACES)
    monkeypatch.chdir(tmp_path)
    dataset = build('Places365', data_root='places', split='val')
    assert dataset.get_data_info(3)['img_path'].endswith('val_256/Places365_val_00000004.jpg')


def test_places_in_neither_layout(tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(FileNotFoundError, match=r'train/<class>/\*\.jpg.*, or .*data_256'):
        find_places365(tmp_path, 'train')
    with pytest.raises(ValueError, match="split is 'test'"):
        find_places365(tmp_path, 'test')


@pytest.mark.parametrize('line', ['/a/airfield/1.jpg', '/a/airfield/1.jpg x', 'one 1\n\ntwo'])
def test_a_broken_line_of_a_list(tmp_path, line):
    path = tmp_path / 'list.txt'
    path.write_text(line)
    with pytest.raises(ImageSetError, match=r'list\.txt, line \d: .* expected "path label"'):
        read_listing(path)
