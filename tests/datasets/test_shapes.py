"""The generated set: the same everywhere, exact in both annotations, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from swinv2_mm.datasets import SHAPE_CLASSES, generate_shapes, shapes

REPOSITORY = Path(__file__).parents[2]
SMALL = dict(num_train=24, num_val=8, image_size=(64, 80), seed=3)


def digest(root: Path) -> dict[str, str]:
    """Hash of every file, by its path below ``root``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    assert generate_shapes(folder, **SMALL)
    return folder


@pytest.fixture(scope='module', params=['training', 'validation'])
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope='module')
def annotations(root: Path, split: str) -> dict:
    return json.loads((root / f'annotations/instances_{split}.json').read_text())


def test_two_runs_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path / 'again', **SMALL)
    assert digest(tmp_path / 'again') == digest(root)
    assert len(digest(root)) == 2 * (24 + 8) + 2 + 1


def test_another_seed_draws_other_pictures_and_a_larger_set_begins_with_the_smaller(
    root: Path, tmp_path: Path
) -> None:
    generate_shapes(tmp_path / 'larger', **{**SMALL, 'num_train': 26})
    generate_shapes(tmp_path / 'other', **{**SMALL, 'seed': 4})
    name = 'images/training/shape_00000.png'
    assert digest(tmp_path / 'larger')[name] == digest(root)[name]
    assert digest(tmp_path / 'other')[name] != digest(root)[name]


def test_training_and_validation_share_no_picture(root: Path) -> None:
    hashes = [value for name, value in digest(root).items() if name.startswith('images')]
    assert len(hashes) == len(set(hashes)) == 32


def test_polygons_give_back_the_label_picture_exactly(root: Path, split: str) -> None:
    coco = pytest.importorskip('pycocotools.coco')
    api = coco.COCO(root / f'annotations/instances_{split}.json')
    for image in api.imgs.values():
        labels = read(root / 'annotations' / split / image['file_name'])
        picture = read(root / 'images' / split / image['file_name'])
        assert picture.shape == (image['height'], image['width'], 3) == (64, 80, 3)
        drawn = np.zeros_like(labels)
        for annotation in api.imgToAnns[image['id']]:
            mask = api.annToMask(annotation).astype(bool)
            assert not drawn[mask].any(), 'visible parts of two shapes overlap'
            drawn[mask] = annotation['category_id']
        np.testing.assert_array_equal(drawn, labels)
    assert api.anns and all(isinstance(a['segmentation'], list) for a in api.anns.values())


def test_boxes_are_tight_and_areas_count_pixels(root: Path, split: str) -> None:
    coco = pytest.importorskip('pycocotools.coco')
    api = coco.COCO(root / f'annotations/instances_{split}.json')
    for annotation in api.anns.values():
        rows, columns = np.nonzero(api.annToMask(annotation))
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation['bbox'] == box
        assert annotation['area'] == len(rows) > 0
        assert annotation['iscrowd'] == 0
    assert len(api.anns) >= 2 * 8


def test_every_class_occurs(root: Path, split: str, annotations: dict) -> None:
    assert [c['name'] for c in annotations['categories']] == list(SHAPE_CLASSES)
    assert {a['category_id'] for a in annotations['annotations']} == {1, 2, 3, 4}
    labels = [np.unique(read(p)) for p in (root / 'annotations' / split).iterdir()]
    assert set(np.concatenate(labels)) == {0, 1, 2, 3, 4}


def test_shapes_hide_parts_of_one_another_but_never_almost_all() -> None:
    from swinv2_mm.datasets.shape_scene import GRID, _place

    shares = []
    for index in range(40):
        placed, owners = _place(np.random.default_rng(index), 64, 64)
        for owner, shape in enumerate(placed, start=1):
            alone = int((2 * shape.coverage() >= GRID * GRID).sum())
            shares.append(int((owners == owner).sum()) / alone)
    assert min(shares) >= 0.4
    assert np.mean(np.array(shares) < 0.9) > 0.2


def test_some_visible_parts_are_in_several_pieces(annotations: dict) -> None:
    assert any(len(a['segmentation']) > 1 for a in annotations['annotations'])


def test_shapes_come_in_a_range_of_sizes(annotations: dict) -> None:
    sides = [max(a['bbox'][2:]) for a in annotations['annotations']]
    assert max(sides) > 2 * min(sides)


def test_every_instance_reaches_the_detector(root: Path, split: str, annotations: dict) -> None:
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    data = CocoDataset(
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'images/{split}/'),
        metainfo=dict(classes=SHAPE_CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=1),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
            dict(type='PackDetInputs'),
        ],
    )
    samples = [data[i]['data_samples'] for i in range(len(data))]
    assert len(samples) == SMALL['num_train' if split == 'training' else 'num_val']
    assert sum(len(s.gt_instances) for s in samples) == len(annotations['annotations'])
    assert sum(len(s.ignored_instances) for s in samples) == 0


def test_a_complete_set_is_left_alone(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert generate_shapes(root, **SMALL) is False
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def draw_then_stop(*args: object) -> shapes.Scene:
        nonlocal drawn
        drawn += 1
        if drawn > 10:
            raise KeyboardInterrupt
        return draw(*args)

    draw = shapes.draw_scene
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shapes, 'draw_scene', draw_then_stop)
        generate_shapes(tmp_path / 'set', **SMALL)
    assert not digest(tmp_path / 'set')
    assert generate_shapes(tmp_path / 'set', **SMALL) is True
    assert digest(tmp_path / 'set') == digest(root)


@pytest.mark.parametrize(
    'name',
    ['images/training/shape_00003.png', 'annotations/instances_validation.json', 'meta.json'],
)
def test_a_lost_file_is_written_again(root: Path, tmp_path: Path, name: str) -> None:
    generate_shapes(tmp_path, **SMALL)
    (tmp_path / name).unlink()
    if name == 'meta.json':  # without it nobody can tell whose files these are
        with pytest.raises(FileExistsError, match='not a set of generated shapes'):
            generate_shapes(tmp_path, **SMALL)
    else:
        assert generate_shapes(tmp_path, **SMALL) is True
        assert digest(tmp_path) == digest(root)


def test_other_parameters_replace_the_set(root: Path, tmp_path: Path) -> None:
    generate_shapes(tmp_path, **{**SMALL, 'num_train': 30, 'seed': 9})
    assert generate_shapes(tmp_path, **SMALL) is True
    assert digest(tmp_path) == digest(root)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.txt').write_text('years of work')
    with pytest.raises(FileExistsError, match='not a set of generated shapes'):
        generate_shapes(tmp_path, **SMALL)
    assert digest(tmp_path).keys() == {'thesis.txt'}


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError, match='is a file; give a folder'):
        generate_shapes(tmp_path / 'file', **SMALL)
    with pytest.raises(NotADirectoryError, match='below'):
        generate_shapes(tmp_path / 'file' / 'below', **SMALL)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match='set'):
        generate_shapes(tmp_path / 'set', **SMALL)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (dict(num_train=0), 'num_train must be at least 1, got 0'),
        (dict(num_val=-1), 'num_val must be at least 1, got -1'),
        (
            dict(image_size=(64, 16)),
            r'image_size\[1\] \(width\) must be at least 32, got 16',
        ),
        (dict(seed=-1), 'seed must be at least 0, got -1'),
    ],
)
def test_bad_parameters_are_named(tmp_path: Path, change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        generate_shapes(tmp_path / 'set', **{**SMALL, **change})
    assert not (tmp_path / 'set').exists()


TOOL = str(REPOSITORY / 'tools/dataset_converters/generate_shapes.py')


def test_the_tool_writes_and_says_so(tmp_path: Path) -> None:
    sizes = ['--num-train', '2', '--num-val', '1', '--image-size', '32', '48']
    done = subprocess.run(
        [sys.executable, TOOL, str(tmp_path / 'set'), *sizes],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Wrote 2 training and 1 validation pictures')
    assert read(tmp_path / 'set/images/training/shape_00001.png').shape == (32, 48, 3)


def test_the_tool_leaves_a_complete_set_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['--num-train', '24', '--num-val', '8', '--image-size', '64', '80', '--seed', '3']
    monkeypatch.setattr(sys, 'argv', [TOOL, str(root), *options])
    runpy.run_path(TOOL, run_name='__main__')
    assert 'is complete; nothing to do' in capsys.readouterr().out


def test_the_tool_ends_with_one_plain_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(sys, 'argv', [TOOL, str(tmp_path / 'file')])
    with pytest.raises(SystemExit, match=r'^generate_shapes: .*is a file; give a folder'):
        runpy.run_path(TOOL, run_name='__main__')
