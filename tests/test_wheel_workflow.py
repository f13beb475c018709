"""The commands of docs/getting_started.md and docs/export.md, from a wheel in an environment of its own.

`SWINV2_MM_WHEEL_ENV` names an environment to reuse; otherwise one is made, which takes minutes and 7 GB.
"""

import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

import cv2
import data_folders
import numpy as np
import pytest
from PIL import Image
from test_cli import copy_sources

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long
WORKERS = [f'{part}_dataloader.num_workers=0' for part in ('train', 'val')]
WORKERS += [f'{part}_dataloader.persistent_workers=False' for part in ('train', 'val')]
SHORT = ('--max-iters', '4', '--no-pretrained', '--device', 'cpu', '--cfg-options', *WORKERS)


def call(*command, cwd):
    """Run a command without the checkout on its path and return its output."""
    started = time.time()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'SWINV2_MM'))}
    done = subprocess.run(
        [str(part) for part in command],
        env=kept,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    print(f'{time.time() - started:6.1f} s  {" ".join(map(str, command[:3]))}')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """The folder of the programs of an environment with the wheel and the extra `export`."""
    folder = tmp_path_factory.mktemp('wheel')
    copy_sources(folder / 'source')
    pip = ('-m', 'pip', '--disable-pip-version-check', '--quiet')
    made = ('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, './source')
    call(sys.executable, *pip, *made, cwd=folder)
    (wheel,) = folder.glob('swinv2_mm-*.whl')
    given = os.environ.get('SWINV2_MM_WHEEL_ENV')
    home = Path(given or folder / 'env')
    if not (home / 'bin/python').exists():
        venv.create(home, with_pip=True)
    pinned = ('install', '-c', ROOT / 'constraints.txt')
    call(home / 'bin/python', *pip, *pinned, f'{wheel}[export]', cwd=folder)
    again = ('install', '--no-deps', '--force-reinstall', wheel)
    call(home / 'bin/python', *pip, *again, cwd=folder)
    where = call(
        home / 'bin/python', '-c', 'import swinv2_mm; print(swinv2_mm.__file__)', cwd=folder
    )
    assert where.startswith(str(home.resolve())) or where.startswith(str(home))
    return home / 'bin'


def documented():
    """Return the commands of docs/getting_started.md on data of one's own, in their order."""
    page = (ROOT / 'docs/getting_started.md').read_text()
    lines = [line for line in page.splitlines() if line.startswith('swinv2-mm ')]
    start = next(i for i, line in enumerate(lines) if 'new-config' in line)
    return lines[start:]


def snippet(name):
    page = (ROOT / 'docs/export.md').read_text()
    (code,) = re.findall(rf'<!-- test: {name} -->\n```python\n(.*?)```', page, re.DOTALL)
    return code


def write_data(kind, folder):
    if kind == 'masks':
        data_folders.write_masks(folder)
    else:
        source = data_folders.Source()
        dict(coco=data_folders.write_coco, yolo=data_folders.write_yolo)[kind](source, folder)
    return next(path for path in sorted(folder.rglob('*.[jp][pn]g')) if 'masks' not in path.parts)


@pytest.mark.skipif(
    'SWINV2_MM_DATA' not in os.environ, reason='SWINV2_MM_DATA names no photographs'
)
@pytest.mark.parametrize(
    ('kind', 'model', 'codes'),
    [
        ('coco', 'mask-rcnn', ['onnx', 'openvino']),
        ('yolo', 'faster-rcnn', ['onnx', 'openvino']),
        ('masks', 'upernet', ['onnx-segmentor']),
    ],
)
def test_a_folder_becomes_a_model_that_runs_anywhere(environment, tmp_path, kind, model, codes):
    photo = write_data(kind, tmp_path / 'data')
    home = tmp_path / 'home'
    (home / 'photos').mkdir(parents=True)
    cv2.imwrite(str(home / 'photo.jpg'), cv2.imread(str(photo)))
    cv2.imwrite(str(home / 'photos/one.jpg'), cv2.imread(str(photo)))
    writer = cv2.VideoWriter(str(home / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 64))
    for _ in range(2):
        writer.write(cv2.resize(cv2.imread(str(photo)), (96, 64)))
    writer.release()
    outputs = {}
    for line in documented():
        line = line.replace('mask-rcnn_swinv2-t', f'{model}_swinv2-nano')
        line = line.replace('FOLDER', str(tmp_path / 'data')).replace('PHOTO.jpg', 'photo.jpg')
        program, name, *arguments = line.split('#')[0].split()
        if name == 'train' and '--max-iters' in arguments:
            continue
        arguments += SHORT if name == 'train' else ()
        arguments += ('--score-thr', '0.0', '--device', 'cpu') if name == 'predict' else ()
        outputs[name] = call(environment / program, name, *arguments, cwd=home)
    assert list(outputs) == ['new-config', 'check-data', 'train', 'predict', 'export']
    assert list((home / 'pictures').rglob('*.png')) or list((home / 'pictures').rglob('*.jpg'))
    assert json.loads((home / 'work_dirs/my/metrics.json').read_text())
    picture = cv2.imread(str(home / 'predictions/photo.jpg'))
    assert picture.shape == cv2.imread(str(photo)).shape
    found = json.loads((home / 'results.json').read_text())
    assert len(found['images']) == 3 and found['annotations']
    for name in codes:
        code = snippet(name).replace('>= 0.3', '>= 0')
        code += (
            "\nimport sys\nassert not {'torch', 'mmdet', 'mmseg', 'swinv2_mm'} & set(sys.modules)\n"
        )
        printed = call(environment / 'python', '-c', code, cwd=home).splitlines()
        facts = json.loads((home / 'model.onnx.json').read_text())
        assert any(line.split()[0] in ' '.join(facts['classes']) for line in printed)
    if kind == 'masks':
        labels = cv2.imread(str(home / 'labels.png'), cv2.IMREAD_UNCHANGED)
        there = np.asarray(Image.open(home / 'predictions/labels/photo.png'))  # with a palette
        assert (labels == there).mean() > 0.98
