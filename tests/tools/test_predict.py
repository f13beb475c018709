"""The command `predict`, and `--out FILE.json` of `test`."""

import csv
import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from random_models import DETECTOR, ROOT, SEGMENTOR, save_random_model
from tool_runs import FAST

TOOL = ROOT / 'tools/predict.py'
DATA = os.environ.get('SWINV2_MM_DATA', '')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    paths = {}
    for name, config in (('detector', DETECTOR), ('segmentor', SEGMENTOR)):
        (folder / name).mkdir()
        paths[name] = save_random_model(config, folder / name)
    return paths


@pytest.fixture
def photos(environment, tmp_path):
    """Photographs of 96 x 64 pixels in two folders, with equal names and two bad files."""
    given = sorted(Path(DATA, 'camvid/images/val').glob('*'))[:3] if DATA else []
    given = given or sorted(Path(environment['SWINV2_MM_SHAPES']).rglob('*.jpg'))[:3]
    given = given or sorted(Path(environment['SWINV2_MM_SHAPES']).rglob('images/**/*.png'))[:3]
    folder = tmp_path / 'photos'
    names = ('a/x.jpg', 'b/x.jpg', 'b/x.png')
    for name, path in zip(names, given):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), cv2.resize(cv2.imread(str(path)), (96, 64)))
    (folder / 'b/bad.png').write_bytes(b'no image')
    (folder / 'b/empty.jpg').touch()
    (folder / 'notes.txt').touch()
    return folder


def test_a_folder(run_tool, models, photos, tmp_path):
    out, table, listed = tmp_path / 'out', tmp_path / 't' / 'p.csv', tmp_path / 'p.json'
    model = ['--model', models['detector'], '--device', 'cpu']
    files = ['--out', out, '--json', listed, '--csv', table, '--score-thr', '0.05', '--batch', '2']
    before = {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()}
    done = run_tool(TOOL, photos, *model, *files)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert f'passed over: {photos}/b/bad.png: not an image, or damaged' in text
    assert 'neither images nor videos are left out: 1 .txt' in text
    assert 'empty.jpg' in text and '3 images' in text and '2 of 5 inputs failed' in text
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob('*.*'))
    assert written == ['a/x.jpg', 'b/x.jpg', 'b/x_2.jpg']
    assert {path: path.read_bytes() for path in before} == before

    content = json.loads(listed.read_text())
    names = [Path(image['file_name']).relative_to(photos).as_posix() for image in content['images']]
    assert names == ['a/x.jpg', 'b/x.jpg', 'b/x.png']
    assert {(image['width'], image['height']) for image in content['images']} == {(96, 64)}
    coco = COCO(str(listed))
    assert len(coco.loadRes(content['annotations']).anns) == len(content['annotations']) > 0
    ids = {category['id'] for category in content['categories']}
    assert {item['category_id'] for item in content['annotations']} <= ids
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content['annotations'])
    assert list(rows[0]) == [
        *('file', 'frame', 'class', 'category_id', 'score', 'x1', 'y1', 'x2', 'y2'),
    ]
    box = content['annotations'][0]['bbox']
    assert float(rows[0]['x2']) == pytest.approx(box[0] + box[2], abs=0.01)

    # Beside the inputs, with nothing found: no input is overwritten, and the images are in the json.
    files = ['--out', photos, '--json', listed, '--score-thr', '1.1']
    done = run_tool(TOOL, photos / 'a/x.jpg', str(photos / 'b/*.jpg'), *model, *files)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    content = json.loads(listed.read_text())
    assert content['annotations'] == [] and len(content['images']) == 2


def test_label_maps_and_a_video(run_tool, models, photos, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / 'v.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, (96, 64))
    frame = cv2.imread(str(photos / 'a/x.jpg'))
    for shift in range(12):
        video.write(np.roll(frame, shift, 1))
    video.release()
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    out = tmp_path / 'out'
    inputs = [photos / 'a/x.jpg', tmp_path / 'v.mp4', tmp_path / 'broken.mp4']
    files = ['--out', out, '--json', tmp_path / 'p.json', '--csv', tmp_path / 'p.csv']
    done = run_tool(
        TOOL, *inputs, '--model', models['segmentor'], '--device', 'cpu', *files, '--batch', '5'
    )
    assert done.returncode == 0, done.stderr
    assert f'{tmp_path}/broken.mp4: cannot be opened as a video' in done.stdout + done.stderr
    labels = Image.open(out / 'labels/x.png')
    assert labels.mode == 'P' and labels.size == (96, 64)
    content = json.loads((tmp_path / 'p.json').read_text())
    assert [image.get('frame') for image in content['images']] == [None, *range(12)]
    ids = {item['category_id'] for item in content['annotations'] if item['image_id'] == 1}
    assert ids == set(np.unique(np.asarray(labels)).tolist())
    drawn = cv2.VideoCapture(str(out / 'v.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 25
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    with (tmp_path / 'p.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row['share']) for row in rows if not row['frame']) == pytest.approx(
        1, abs=1e-3
    )


def test_a_large_tiff_is_read_by_windows(models, photos, tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio')
    from swinv2_mm.apis import tiles
    from swinv2_mm.apis.predict import predict

    image = cv2.resize(cv2.imread(str(photos / 'a/x.jpg')), (200, 150))
    path = tmp_path / 'map.tif'
    where = rasterio.transform.from_origin(400000, 5000000, 10, 10)
    profile = dict(width=200, height=150, count=3, dtype='uint8', crs='EPSG:32633', transform=where)
    with rasterio.open(path, 'w', driver='GTiff', **profile) as file:
        file.write(np.moveaxis(image[..., ::-1], 2, 0))
    options = dict(device='cpu', tile=64, batch=2, json_file=str(tmp_path / 'p.json'))
    for folder, largest in (('whole', 1 << 30), ('windows', 100)):
        monkeypatch.setattr(tiles, '_LARGEST_LOADED', largest)
        assert predict([str(path)], models['segmentor'], out=str(tmp_path / folder), **options) == 0
    labels = np.asarray(Image.open(tmp_path / 'whole/labels/map.png'))
    with rasterio.open(tmp_path / 'windows/labels/map.tif') as file:
        assert file.crs.to_epsg() == 32633 and file.transform == where
        assert (file.read(1) == labels).all() and len(np.unique(labels)) > 1
    for largest in (1 << 30, 100):
        monkeypatch.setattr(tiles, '_LARGEST_LOADED', largest)
        found = predict(
            [str(path)],
            models['detector'],
            out=str(tmp_path / 'd'),
            score_thr=0.1,
            pictures=False,
            **options,
        )
        assert found == 0
        content = json.loads((tmp_path / 'p.json').read_text())
        if largest > 100:
            expected = content
    assert content == expected and content['annotations']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.jpg'], 'The input missing.jpg does not exist.'),
        (['*.nothing'], 'matches no file'),
        (['{folder}'], 'holds no image or video'),
        (['{photo}', '--tile', '8'], 'too small'),
        (['{photo}', '--json', '{photo}'], 'is an input'),
        (['{photo}', '--model', 'none.pth'], 'The checkpoint none.pth does not exist'),
        (['{photo}', '--out', '{photo}'], 'cannot be created'),
        (['{bad}'], '1 of 1 inputs failed'),
    ],
)
def test_mistakes_end_with_a_sentence(run_tool, models, photos, tmp_path, arguments, message):
    (tmp_path / 'empty').mkdir()
    places = dict(folder=tmp_path / 'empty', photo=photos / 'a/x.jpg', bad=photos / 'b/bad.png')
    arguments = [item.format(**places) for item in arguments]
    if '--model' not in arguments:
        arguments += ['--model', models['segmentor']]
    done = run_tool(TOOL, '--out', tmp_path / 'out', '--device', 'cpu', *arguments)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.parametrize('annotated', [True, False])
def test_results_of_a_test_set_as_json(run_tool, models, root, tmp_path, annotated):
    ann_file = next(root.rglob('*val*.json'))
    content = json.loads(ann_file.read_text())
    if not annotated:
        del content['annotations']
        ann_file.write_text(json.dumps(content))
    done = run_tool(
        ROOT / 'tools/test.py',
        *(DETECTOR, models['detector'], '--device', 'cpu', '--work-dir', tmp_path / 'work'),
        *('--out', tmp_path / 'p.json', '--cfg-options', *FAST),
        env={'SWINV2_MM_SHAPES': str(root)},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'p.json').read_text())
    assert set(results[0]) == {'image_id', 'bbox', 'score', 'category_id', 'segmentation'}
    assert {item['image_id'] for item in results} <= {image['id'] for image in content['images']}
    assert len(COCO(str(ann_file)).loadRes(results).anns) == len(results)
    metrics = json.loads((tmp_path / 'work/test_metrics.json').read_text())
    assert ('bbox_mAP' in metrics) == annotated


def test_a_camera_ends_with_an_interrupt(tmp_path):
    """Stood for by a video file, which would have more frames."""
    from swinv2_mm.apis.inputs import Video

    writer = cv2.VideoWriter(str(tmp_path / 'v.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, (96, 64))
    for _ in range(9):
        writer.write(np.zeros((64, 96, 3), np.uint8))
    writer.release()
    video = Video(str(tmp_path / 'v.mp4'))
    video.live = True
    before = signal.getsignal(signal.SIGINT)
    count = 0
    for _ in video:
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
    assert count == 3 and signal.getsignal(signal.SIGINT) is before
