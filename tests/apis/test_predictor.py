"""`Predictor` gives what the libraries' own inference gives, for every kind of image."""

import functools
import http.server
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from random_models import CLASSIFIER, DETECTOR, SEGMENTOR, save_random_model

from swinv2_mm import Predictor
from swinv2_mm.apis.predictor import ImageError
from swinv2_mm.apis.results import encode, encode_crop, find_categories
from swinv2_mm.datasets import generate_shapes
from swinv2_mm.engine.errors import SetupError

DATA = os.environ.get('SWINV2_MM_DATA', '')


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A photograph of pedestrians of 120 x 90 pixels, or a generated picture without the data."""
    path = tmp_path_factory.mktemp('photo') / 'photo.png'
    found = sorted(Path(DATA, 'pennfudan/val').glob('*')) if DATA else []
    if not found:
        generate_shapes(path.parent, num_train=1, num_val=1, image_size=(90, 120))
        found = sorted(path.parent.rglob('*.jpg')) or sorted(path.parent.rglob('*.png'))
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(found[0])), (120, 90)))
    return str(path)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    path = save_random_model(DETECTOR, tmp_path_factory.mktemp('detector'))
    return Predictor(path, 'cpu', score_thr=0.0)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    return Predictor(save_random_model(SEGMENTOR, tmp_path_factory.mktemp('segmentor')), 'cpu')


def test_a_detector_gives_what_mmdet_gives(detector, photo):
    from mmdet.apis import inference_detector

    expected = inference_detector(detector.model, photo).pred_instances
    found = detector(photo)
    assert len(expected) > 3
    torch.testing.assert_close(found.pred_instances.bboxes, expected.bboxes)
    torch.testing.assert_close(found.pred_instances.scores, expected.scores)
    assert torch.equal(found.pred_instances.masks, expected.masks)
    results = found.to_coco(7)
    x1, y1, x2, y2 = expected.bboxes[0].tolist()
    assert results[0]['image_id'] == 7
    assert results[0]['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    for result, mask in zip(results, expected.masks):
        assert (coco_masks.decode(result['segmentation']) == mask.numpy()).all()
        assert result['area'] == int(mask.sum())
    detections = found.to_supervision()
    np.testing.assert_allclose(detections.xyxy, expected.bboxes.numpy())
    assert set(detections['class_name']) <= set(detector.categories.names)
    assert found.plot().shape == (168, 224, 3)  # enlarged


def test_a_segmentor_gives_what_mmseg_gives(segmentor, photo):
    from mmseg.apis import inference_model

    found = segmentor(photo)
    expected = inference_model(segmentor.model, photo).pred_sem_seg.data[0].numpy()
    labels = found.label_map()
    assert labels.dtype == np.uint8 and len(np.unique(expected)) > 1
    assert (labels == expected).all()
    assert 'seg_logits' not in found.sample
    assert sum(result['area'] for result in found.to_coco()) == labels.size
    detections = found.to_supervision()
    assert (detections.mask.sum(0) == 1).all()


def test_bf16_keeps_boxes_and_logits_in_fp32(tmp_path, photo):
    for config in (DETECTOR, SEGMENTOR):
        path = save_random_model(config, tmp_path)
        options = dict(device='cpu', score_thr=0.0, tile=64)
        exact, half = (Predictor(path, precision=p, **options) for p in ('fp32', 'bf16'))
        if config == SEGMENTOR:
            labels = [predictor(photo).label_map() for predictor in (exact, half)]
            assert (labels[0] == labels[1]).mean() > 0.9
            continue
        packed = half.load(photo).packed or half.pack(half.load(photo).pixels)
        (sample,) = half._run([packed])
        boxes = sample.pred_instances.bboxes
        assert boxes.dtype == torch.float32
        assert (boxes.bfloat16().float() != boxes).any()


def test_a_classifier_names_the_likeliest_classes(tmp_path, photo):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('sklearn')
    predictor = Predictor(save_random_model(CLASSIFIER, tmp_path), 'cpu')
    small = cv2.resize(cv2.imread(photo), (32, 32))
    found = predictor(small)
    scores = [result['score'] for result in found.to_coco()]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert found.to_coco()[0]['category_id'] == int(found.pred_label)
    assert next(found.rows())['class'] == f'digit {int(found.pred_label)}'
    assert found.plot().shape == (224, 224, 3)
    with pytest.raises(SetupError, match='this model is a classifier'):
        Predictor(predictor.model, tile=64)


def test_path_array_and_pillow_image_are_the_same_image(segmentor, photo):
    image = cv2.imread(photo)
    first, *others = segmentor([photo, image, Image.open(photo)])
    for other in others:
        assert (other.label_map() == first.label_map()).all()
        assert (other.image == first.image).all()


def test_a_batch_gives_what_single_images_give(detector, photo):
    image = cv2.imread(photo)
    images = [image, image[:64], image[:, ::-1]]
    detector.batch = 3
    try:
        together = detector(images)
    finally:
        detector.batch = 1
    for one, image in zip(together, images):
        alone = detector(image)
        torch.testing.assert_close(
            one.pred_instances.scores, alone.pred_instances.scores, rtol=1e-3, atol=1e-4
        )


def test_a_rotated_photograph_is_upright(segmentor, photo, tmp_path):
    """OpenCV, which the config reads with, applies the rotation in the training, too."""
    image = Image.open(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'a.png', exif=exif)
    found, in_memory = segmentor([str(tmp_path / 'a.png'), Image.open(tmp_path / 'a.png')])
    assert (found.image == cv2.imread(photo)).all()
    assert (found.label_map() == segmentor(photo).label_map()).all()
    assert (in_memory.image == found.image).all()


@pytest.mark.parametrize('kind', ['16 bit', 'grey', 'alpha', 'palette', 'CMYK'])
def test_kinds_of_images(segmentor, photo, tmp_path, kind):
    image = Image.open(photo)
    path = tmp_path / ('a.jpg' if kind == 'CMYK' else 'a.png')
    if kind == '16 bit':
        cv2.imwrite(str(path), cv2.imread(photo).astype(np.uint16) << 8)
    else:
        modes = {'grey': 'L', 'alpha': 'RGBA', 'palette': 'P', 'CMYK': 'CMYK'}
        image.convert(modes[kind]).save(path)
    found = segmentor(str(path))
    assert found.image.shape == (90, 120, 3)
    if kind in ('16 bit', 'alpha'):
        assert (found.label_map() == segmentor(photo).label_map()).all()


@pytest.mark.parametrize(
    'image, reason',
    [
        (np.zeros((4, 4, 3)), 'not float64'),
        (np.zeros((4, 4, 2), np.uint8), r'not \(4, 4, 2\)'),
        ('missing.jpg', 'missing.jpg: No such file'),
        (3, 'not int'),
        ('ftp://example.com/a.jpg', 'must begin with http'),
    ],
)
def test_what_is_no_image_is_named(segmentor, image, reason):
    with pytest.raises(ImageError, match=reason):
        segmentor(image)


def test_a_huge_image_needs_tiles(segmentor, photo, monkeypatch):
    monkeypatch.setattr('swinv2_mm.apis.predictor._LARGEST_WHOLE', 90 * 120 - 1)
    with pytest.raises(ImageError, match=r'120 x 90 pixels are too many.*--tile 1024'):
        segmentor.load(photo)


def test_an_image_at_an_address(segmentor, photo, monkeypatch):
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(Path(photo).parent)
    )
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f'http://127.0.0.1:{server.server_port}'
        assert (segmentor(f'{address}/photo.png').image == cv2.imread(photo)).all()
        with pytest.raises(ImageError, match=r'nothing.png: HTTP Error 404'):
            segmentor(f'{address}/nothing.png')
        monkeypatch.setattr('swinv2_mm.apis.inputs._LARGEST_DOWNLOAD', 100)
        with pytest.raises(ImageError, match='has more than'):
            segmentor(f'{address}/photo.png')
    finally:
        server.shutdown()
        server.server_close()


def test_no_object_above_the_threshold(detector, photo):
    strict = Predictor(detector.model, score_thr=1.1)
    found = strict(photo)
    assert found.to_coco() == [] and list(found.rows()) == []
    assert len(found.to_supervision()) == 0
    assert found.plot().shape == (168, 224, 3)


def test_category_ids(tmp_path, detector):
    from mmdet.datasets import CocoDataset
    from mmengine.config import Config

    classes = CocoDataset.METAINFO['classes']
    stock = Config(dict(default_scope='mmdet', model={}))
    ids = find_categories(stock, {'classes': classes}, 80).ids
    assert (len(ids), ids[0], ids[11], ids[-1]) == (80, 1, 13, 90)
    (tmp_path / 'a.json').write_text(
        '{"categories": [{"id": 5, "name": "b"}, {"id": 9, "name": "a"}]}'
    )
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json')
    own = Config(dict(default_scope='mmdet', model={}, test_dataloader=dict(dataset=dataset)))
    assert find_categories(own, {'classes': ['a', 'b']}, 2).ids == (9, 5)
    own.test_dataloader.dataset.ann_file = 'missing.json'
    assert find_categories(own, {'classes': ['a', 'b']}, 2).ids == (1, 2)
    zero = dict(type='ADE20KDataset', reduce_zero_label=True)
    seg = Config(dict(default_scope='mmseg', model={}, test_dataloader=dict(dataset=zero)))
    assert find_categories(seg, {'classes': ['wall', 'sky']}, 2).ids == (1, 2)


def test_run_lengths_of_a_part_of_a_mask():
    whole = np.zeros((40, 50), bool)
    whole[5:20, 30:41] = np.random.default_rng(0).random((15, 11)) > 0.4
    assert encode_crop(whole[5:20, 30:41], (30, 5), (40, 50)) == encode(whole)
    assert encode_crop(np.ones((40, 50), bool), (0, 0), (40, 50)) == encode(np.ones((40, 50)))
    assert encode_crop(np.zeros((2, 2), bool), (3, 3), (40, 50)) == encode(np.zeros((40, 50)))


def test_the_example_of_the_docs(detector, photo, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / 'docs/predict.md').read_text()
    code = page.split('<!-- test: predictor -->\n```python\n')[1].split('```')[0]
    code = code.replace("'work_dirs/my_config'", 'model').replace("'photo.jpg'", 'photo')
    monkeypatch.chdir(tmp_path)
    names = {'model': detector.model, 'photo': photo}
    exec(compile(code, 'docs/predict.md', 'exec'), names)
    assert (tmp_path / 'picture.jpg').is_file()
    assert len(names['results']) == 2


def test_the_picture_of_the_readme(detector, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / 'docs/getting_started.md').read_text()
    code = page.split('<!-- test: demo-picture -->\n```python\n')[1].split('```')[0]
    generate_shapes(tmp_path / 'data/shapes', num_train=1, num_val=6, image_size=(64, 64))
    monkeypatch.chdir(tmp_path)
    exec(
        compile(code.replace("'work_dirs/demo'", 'model'), 'docs/getting_started.md', 'exec'),
        {'model': detector.model},
    )
    assert cv2.imread('demo.jpg').shape == (448, 6 * 224, 3)
