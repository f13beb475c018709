"""tools/new_config.py: every layout gives the objects of its source, and a config that trains."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_folders import (
    INSTANCES,
    Source,
    objects_of,
    same_objects,
    write_classes,
    write_coco,
    write_masks,
    write_yolo,
)
from mmengine.registry import DefaultScope
from PIL import Image
from tool_runs import FAST

from swinv2_mm.apis.new_config import new_config
from swinv2_mm.datasets.checks import ConfiguredData
from swinv2_mm.engine.config import load_config


@pytest.fixture(scope='module')
def source():
    return Source()


@pytest.fixture
def made(tmp_path, capsys):
    """Return a function that runs the tool on `tmp_path / 'data'` and returns exit code, output and config."""

    def run(*model, name='my.py', **options):
        out = tmp_path / 'out' / name
        out.parent.mkdir(exist_ok=True)
        before = snapshot(tmp_path / 'data')
        code = new_config(str(tmp_path / 'data'), *model, out=str(out), **options)
        assert snapshot(tmp_path / 'data') == before
        printed = capsys.readouterr()
        cfg = load_config(str(out)) if out.exists() else None
        return code, printed.out + printed.err, cfg

    return run


def snapshot(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob('*'))}


def dataset(cfg, part):
    return ConfiguredData(cfg, (part,)).dataset(part)


@pytest.mark.parametrize('layout', INSTANCES)
def test_the_data_sets_have_the_objects_of_the_source(source, made, tmp_path, layout):
    write, model = INSTANCES[layout]
    (tmp_path / 'data').mkdir()
    write(source, tmp_path / 'data')
    code, printed, cfg = made(f'{model}_swinv2-nano')
    assert code == 0, printed
    for part in ('train', 'val'):
        built = dataset(cfg, part)
        assert sorted(built.metainfo['classes']) == source.classes
        found, expected = objects_of(built), source.expected(part)
        assert same_objects(found, expected, 1.5 if layout in ('labelme', 'cvat') else 1.0)
        assert ('mask' in built.get_data_info(0)['instances'][0]) == (
            model == 'mask-rcnn' or layout == 'coco'
        )
    assert (
        cfg.model.type == dict(zip(('mask-rcnn', 'faster-rcnn'), ('MaskRCNN', 'FasterRCNN')))[model]
    )


COLOURS = np.array([[index, 255 - index, 40] for index in range(256)], np.uint8)


@pytest.mark.parametrize(
    'change, numbers',
    [
        pytest.param(None, None, id='numbers'),
        pytest.param(lambda values: COLOURS[values], None, id='colours'),
        pytest.param(
            lambda values: (
                (values == values.max(initial=0, where=values < 11)).astype(np.uint8) * 255
            ),
            2,
            id='black-and-white',
        ),
        pytest.param(lambda values: (values % 4).astype(np.uint16) * 300, 4, id='16-bit'),
    ],
)
def test_label_maps(made, tmp_path, change, numbers):
    root = tmp_path / 'data'
    write_masks(root, change=change)
    if numbers is None:
        lines = [f'kind {index}:{index},{255 - index},40::' for index in range(11)]
        (root / 'labelmap.txt').write_text('\n'.join(lines))
    code, printed, cfg = made('fpn_swinv2-nano' if numbers == 2 else None)
    assert code == 0, printed
    assert cfg.model.decode_head.type == ('FPNHead' if numbers == 2 else 'UPerHead')
    assert cfg.model.decode_head.num_classes == (numbers or 11)
    for part in ('train', 'val'):
        built = dataset(cfg, part)
        assert len(built) == {'train': 4, 'val': 2}[part]
        assert len(built.metainfo['classes']) == (numbers or 11)
        info = built.get_data_info(0)
        with DefaultScope.overwrite_default_scope('mmseg'):
            loaded = built.pipeline.transforms[1 if part == 'train' else 2](dict(info))
        original = next((root / 'masks' / part).glob(f'{os.path.basename(info["img_path"])[:-4]}*'))
        source = np.asarray(Image.open(original))
        label = loaded['gt_seg_map']
        if numbers == 2:
            assert (label == (source == 255)).all()
        elif numbers == 4:
            assert (label == source // 300).all()
        elif change is None:
            assert (label == source).all()
        else:
            assert (label == np.where(source[..., 0] == 255, 255, source[..., 0])).all()


def test_colours_without_names_are_refused(made, tmp_path):
    write_masks(tmp_path / 'data', change=lambda values: COLOURS[values])
    code, printed, cfg = made()
    assert code == 2 and cfg is None and 'name:red,green,blue' in printed


def test_label_maps_with_names_of_their_own_and_images_without(made, tmp_path):
    root = tmp_path / 'data'
    write_masks(root, counts=[('train', 6)], suffix='_mask.png')
    images = sorted((root / 'images/train').iterdir())
    images[0].rename(images[0].with_suffix('.JPG'))
    (root / 'masks/train' / f'{images[1].stem}_mask.png').unlink()
    code, printed, cfg = made(split=0.4)
    assert code == 0, printed
    assert f'images without a label map are left out: images/train/{images[1].name}' in printed
    assert [len(dataset(cfg, part)) for part in ('train', 'val')] == [3, 2]


@pytest.mark.parametrize('split', [None, 0.2])
def test_class_folders(made, tmp_path, split):
    root = tmp_path / 'data'
    write_classes(root)
    if split:
        shutil.rmtree(root / 'val')
        code, printed, _ = made('swinv2-nano')
        assert code == 2 and '--split 0.2' in printed and not (tmp_path / 'out/my.py').exists()
    code, printed, cfg = made('swinv2-nano', split=split)
    assert code == 0, printed
    for part, count in (('train', 5 if split else 6), ('val', 1 if split else 2)):
        built = dataset(cfg, part)
        assert built.metainfo['classes'] in (['ground', 'person'], ('ground', 'person'))
        assert np.bincount(built.get_gt_labels()).tolist() == [count, count]
        for index in range(len(built)):
            info = built.get_data_info(index)
            assert ('person' in info['img_path']) == (info['gt_label'] == 1)


def test_a_split_is_by_image_and_the_same_every_time(source, made, tmp_path):
    root = tmp_path / 'data'
    write_coco(source, root)
    shutil.rmtree(root / 'val2017')
    (root / 'annotations/instances_val2017.json').unlink()
    kept = []
    for name in ('a.py', 'b.py'):
        code, printed, cfg = made('mask-rcnn_swinv2-nano', split=0.2, name=name)
        assert code == 0 and 'train 4, val 1' in printed
        kept.append([objects_of(dataset(cfg, part)) for part in ('train', 'val')])
    assert kept[0] == kept[1]
    assert same_objects(sorted(kept[0][0] + kept[0][1]), source.expected('train'), 0.2)
    assert not {one[0] for one in kept[0][0]} & {one[0] for one in kept[0][1]}
    code, printed, _ = made('mask-rcnn_swinv2-nano', split=0.2, name='a.py')
    assert code == 2 and 'a.py exists: overwrite it with --force' in printed
    assert made('mask-rcnn_swinv2-nano', split=0.4, name='a.py', force=True)[0] == 0


def test_a_model_that_does_not_fit(source, made, tmp_path):
    write_yolo(source, tmp_path / 'data')
    for model in ('upernet_swinv2-t', 'mask-rcnn_swinv2-t', 'swinv2-t'):
        code, printed, cfg = made(model)
        assert code == 2 and cfg is None
        assert 'does not fit data with objects that have boxes and no masks' in printed
        assert 'faster-rcnn_swinv2-nano, faster-rcnn_swinv2-t' in printed
    code, printed, _ = made('resnet')
    assert code == 2 and 'there is no such model' in printed
    code, printed, _ = made(split=0.2)
    assert code == 2 and 'has a validation set already' in printed
    assert made()[0] == 0  # a Faster R-CNN of size t, built by the checks


def test_bad_yolo_files_are_named_and_left_out(source, made, tmp_path):
    root = tmp_path / 'data'
    write_yolo(source, root)
    images = sorted((root / 'images/train').iterdir())
    labels = [root / 'labels/train' / f'{image.stem}.txt' for image in images]
    images[0].rename(images[0].with_name('ein Bild, größer.JPG'))
    labels[0].rename(labels[0].with_name('ein Bild, größer.txt'))
    labels[1].unlink()  # background
    bad = ('99 .5 .5 .1 .1', '0 .5 .5 nan .1', '0 1 2', '0 320 200 50 50', '0 a b c d')
    labels[2].write_text('\n'.join([labels[2].read_text(), *bad]))
    images[3].write_bytes(b'')
    (root / 'labels/train/nowhere.txt').write_text('0 0.5 0.5 0.1 0.1')
    code, printed, cfg = made('faster-rcnn_swinv2-nano')
    assert code == 0, printed
    assert 'label files without an image are left out: labels/train/nowhere.txt' in printed
    assert f'images that cannot be read are left out: images/train/{images[3].name}' in printed
    assert 'class 99 of' in printed and 'and 2 more' in printed
    assert 'which are background: 1' in printed
    built = dataset(cfg, 'train')
    assert len(built) == 4
    gone = {images[1].stem, images[3].stem}
    expected = [one for one in source.expected('train') if one[0] not in gone]
    assert len(objects_of(built)) == len(expected)
    assert any('größer.JPG' in built.get_data_info(index)['img_path'] for index in range(4))


@pytest.mark.parametrize(
    'bad, kept', [('0 .5 abc\n0 .5 .5 .2 .2', 1), ('0 .5 abc', 0), ('99 .5 .5 .2 .2', 0)]
)
def test_an_image_whose_yolo_labels_are_bad_is_no_background(bad, kept, source, made, tmp_path):
    root = tmp_path / 'data'
    write_yolo(source, root)
    image = sorted((root / 'images/train').iterdir())[0]
    (root / 'labels/train' / f'{image.stem}.txt').write_text(bad)
    code, printed, cfg = made('faster-rcnn_swinv2-nano')
    assert code == 0, printed
    assert 'lines of label files that cannot be used are left out: ' in printed
    assert f'{image.stem}.txt: {bad[:2]}' in printed
    assert ('none can be used are left out' in printed) == (not kept)
    assert 'without an image' not in printed and 'background' not in printed
    built = dataset(cfg, 'train')
    names = [Path(built.get_data_info(index)['img_path']).name for index in range(len(built))]
    assert (image.name in names) == bool(kept)


def test_folders_without_data(made, tmp_path, source):
    (tmp_path / 'data').mkdir()
    assert 'has no images in it' in made()[1]
    shutil.copy(source.parts['train'][0][0], tmp_path / 'data/a.jpg')
    code, printed, _ = made()
    assert code == 2 and '1 images and no annotations in a known layout' in printed
    code = new_config(str(tmp_path / 'nothing'))
    assert code == 2


@pytest.mark.parametrize('kind', ['coco', 'classes'])
def test_several_data_sets_in_a_folder(source, made, tmp_path, kind):
    for name in ('first', 'second'):
        if kind == 'coco':
            write_coco(source, tmp_path / 'data' / name)
        else:
            for path in ('train/cat', 'train/dog', 'val/cat', 'val/dog'):
                (tmp_path / 'data' / name / path).mkdir(parents=True)
                shutil.copy(source.parts['train'][0][0], tmp_path / 'data' / name / path / 'a.jpg')
    code, printed, _ = made()
    assert code == 2 and f'e.g. {tmp_path / "data" / "first"}.' in printed


def test_two_layouts_at_once(source, made, tmp_path):
    write_coco(source, tmp_path / 'data')
    write_yolo(source, tmp_path / 'data')
    code, printed, _ = made()
    assert code == 2 and 'in 2 layouts' in printed and '--layout coco|yolo' in printed
    code, printed, cfg = made('mask-rcnn_swinv2-nano', layout='coco')
    assert code == 0 and len(dataset(cfg, 'train')) == 5


def test_fields_that_a_coco_json_lacks_are_completed(source, made, tmp_path):
    root = tmp_path / 'data'
    write_coco(source, root)
    for path in (root / 'annotations').glob('instances*'):
        content = json.loads(path.read_text())
        for item in content['annotations']:
            del item['area'], item['iscrowd'], item['bbox']
        path.write_text(json.dumps(content))
    code, printed, cfg = made('mask-rcnn_swinv2-nano')
    assert code == 0, printed
    assert same_objects(objects_of(dataset(cfg, 'train')), source.expected('train'))


def test_hostile_files(source, made, tmp_path):
    root = tmp_path / 'data'
    INSTANCES['voc'][0](source, root)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    for path in sorted((root / 'Annotations').iterdir())[:2]:
        path.write_text(bomb)
    code, printed, _ = made('faster-rcnn_swinv2-nano')
    assert 'annotation files that cannot be read are left out' in printed and code in (0, 2)
    shutil.rmtree(root)
    write_yolo(source, root)
    (root / 'data.yaml').write_text('names: !!python/object/apply:os.system ["touch /tmp/owned"]')
    code, printed, _ = made('faster-rcnn_swinv2-nano', force=True)
    assert code == 2 and 'data.yaml cannot be read' in printed


def test_a_place_that_cannot_be_written_to(source, tmp_path, capsys):
    write_coco(source, tmp_path / 'data')
    (tmp_path / 'file').write_text('a file')
    code = new_config(str(tmp_path / 'data'), 'mask-rcnn_swinv2-nano', out=f'{tmp_path}/file/my.py')
    assert code == 2 and 'cannot be written' in capsys.readouterr().err


def test_a_folder_that_is_something_else_is_not_replaced(source, made, tmp_path):
    write_yolo(source, tmp_path / 'data')
    (tmp_path / 'out/my_data').mkdir(parents=True)
    (tmp_path / 'out/my_data/thesis.txt').write_text('years of work')
    code, printed, _ = made('faster-rcnn_swinv2-nano', force=True)
    assert code == 2 and 'is something else' in printed
    assert (tmp_path / 'out/my_data/thesis.txt').read_text() == 'years of work'


TRAINED = {
    'coco': (lambda root: write_coco(Source(), root), 'mask-rcnn', 'coco/segm_mAP'),
    'yolo': (lambda root: write_yolo(Source(), root), 'faster-rcnn', 'coco/bbox_mAP'),
    'masks': (write_masks, 'upernet', 'mIoU'),
}


@pytest.mark.parametrize(
    'kind',
    [
        pytest.param('coco', marks=pytest.mark.long),
        pytest.param('yolo', marks=pytest.mark.long),
        'masks',
    ],
)
def test_the_config_trains(run_tool, tmp_path, kind):
    """The commands of docs/your_data.md, from another directory than the checkout."""
    write, model, metric = TRAINED[kind]
    write(tmp_path / 'data')
    config, work_dir = tmp_path / 'my.py', tmp_path / 'work'
    options = ('--model', f'{model}_swinv2-nano', '-o', config)
    process = run_tool('tools/new_config.py', tmp_path / 'data', *options)
    assert process.returncode == 0, process.stderr
    assert f'swinv2-mm train {config}' in process.stdout
    process = run_tool(
        'tools/train.py',
        config,
        '--max-iters',
        2,
        '--no-pretrained',
        '--device',
        'cpu',
        '--work-dir',
        work_dir,
        '--cfg-options',
        'model.backbone.arch.depths=(1,1,1,1)',
        *FAST,
    )
    assert process.returncode == 0, process.stderr
    assert metric in process.stdout + process.stderr
    assert (work_dir / 'iter_2.pth').is_file()
