"""The web page in a headless browser, and what it refuses."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from random_models import CLASSIFIER, DETECTOR, SEGMENTOR, save_random_model

from swinv2_mm import Predictor
from swinv2_mm.apis import web
from swinv2_mm.apis.predictor import ImageError
from swinv2_mm.datasets import generate_shapes

ROOT = Path(__file__).parents[2]
DATA = os.environ.get('SWINV2_MM_DATA', '')
MODEL, PHOTO, SCREENSHOT = (
    os.environ.get(f'SWINV2_MM_WEB_{name}') for name in ('MODEL', 'PHOTO', 'SCREENSHOT')
)
"""For the picture in docs/web.md."""
BROWSER = shutil.which('chromium') or shutil.which('chromium-browser')
QUIET = [
    *('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update'),
]


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A photograph, or a generated picture without the data."""
    found = sorted(Path(DATA, 'pennfudan/val').glob('*')) if DATA else []
    if not found:
        folder = tmp_path_factory.mktemp('shapes')
        generate_shapes(folder, num_train=1, num_val=1, image_size=(240, 320))
        found = sorted(folder.rglob('*.jpg')) or sorted(folder.rglob('*.png'))
    return PHOTO or str(found[0])


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return MODEL or save_random_model(DETECTOR, tmp_path_factory.mktemp('detector'))


def start(*options, **env):
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, ROOT / 'tools/web.py', *options],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_page_in_a_browser(detector, photo, tmp_path):
    pytest.importorskip('gradio')
    playwright = pytest.importorskip('playwright.sync_api')
    if BROWSER is None:
        pytest.skip('no chromium')
    # A proxy that does not exist: the server must not ask it for itself.
    unused = dict.fromkeys(('http_proxy', 'https_proxy'), 'http://127.0.0.1:9')
    process = start(detector, '--port', '0', '--device', 'cpu', TMPDIR=str(tmp_path), **unused)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if 'open http://' in line:
                break
        address = re.search(r'open (http://127\.0\.0\.1:\d+) in a browser', lines[-1])
        assert address, ''.join(lines)
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=BROWSER, args=QUIET)
            use_page(browser, address[1], photo, tmp_path)
            browser.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        rest = process.stdout.read()
        assert 'Traceback' not in rest and 'interrupted' in rest
        assert not list(tmp_path.glob('swinv2-mm-web-*'))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def use_page(browser, address, photo, folder):
    """Do what a user does; nothing but the server may be asked, and the browser may report no error."""
    page = browser.new_page(viewport={'width': 1280, 'height': 800})
    page.set_default_timeout(20000)
    problems, hosts = [], set()
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('console', lambda said: said.type == 'error' and problems.append(said.text))
    page.on('request', lambda request: hosts.add(request.url.split('/')[2]))
    page.goto(address)
    picture, text = page.locator('#result img'), page.locator('#text textarea')
    chooser = page.locator('input[type=file]').first

    def wait_for(pattern):
        page.wait_for_function(
            f'new RegExp({pattern!r}).test(document.querySelector("#text textarea").value)'
        )
        return text.input_value()

    chooser.set_input_files(photo)
    height, width = cv2.imread(photo).shape[:2]
    first = wait_for(f'{width} x {height} pixels')
    assert re.search(r'prediction \d+ ms on cpu; read \d+ ms, draw \d+ ms', first)
    picture.wait_for()
    threshold = page.get_by_label('number input for Score threshold')
    for value, expected in (('1', 'no object above'), ('0.5' if MODEL else '0.05', r': \d')):
        source = picture.evaluate('it => it.src')
        threshold.fill(value)
        threshold.press('Enter')
        wait_for(expected)
        page.wait_for_function(f'document.querySelector("#result img").src != {source!r}')
    box = picture.bounding_box()
    picture.click(position={'x': box['width'] * 0.4, 'y': box['height'] * 0.6})
    for name in ('attention', 'similarity', 'features'):
        page.locator(f'#{name} img').wait_for()
    map_address = page.locator('#similarity img').evaluate('it => it.src')
    content = np.frombuffer(page.request.get(map_address).body(), np.uint8)
    marked = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert marked.shape == (height, width, 3)
    assert marked[round(height * 0.6), round(width * 0.4)].min() > 200  # the centre of the cross
    source = page.locator('#features img').evaluate('it => it.src')
    page.get_by_role('radio', name='2').check()
    page.wait_for_function(f'document.querySelector("#features img").src != {source!r}')
    page.wait_for_timeout(500)
    if SCREENSHOT:
        quality = {'quality': 85} if SCREENSHOT.endswith('.jpg') else {}
        page.screenshot(path=SCREENSHOT, full_page=True, **quality)
    for viewport in (380, 800, 1600):
        page.set_viewport_size({'width': viewport, 'height': 800})
        page.wait_for_timeout(100)
        assert page.evaluate('document.documentElement.scrollWidth') <= viewport
        shown = picture.bounding_box()
        assert shown['x'] >= 0 and shown['x'] + shown['width'] <= viewport
    broken = folder / 'broken.jpg'
    broken.write_text('this is text')
    page.get_by_label('Clear').or_(page.get_by_label('Remove Image')).first.click()
    picture.wait_for(state='detached')
    page.locator('#features img').wait_for(state='detached')
    chooser.set_input_files(str(broken))
    assert wait_for('broken').startswith('broken.jpg is not a picture that can be read')
    assert hosts == {address.split('/')[2]}
    assert problems == []


def test_what_is_no_picture_is_refused(tmp_path, monkeypatch):
    text, vector, bomb = (tmp_path / name for name in ('text.jpg', 'a.svg', 'bomb.png'))
    text.write_text('this is text')
    vector.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    for file in (text, vector):
        with pytest.raises(ImageError, match=f'^{file.name} is not a picture.*choose JPEG, PNG'):
            web.check_photo(str(file))
    Image.new('1', (20000, 10000)).save(bomb)
    with pytest.raises(ImageError, match=r'^bomb.png has more than 50 million pixels: .* --tile'):
        web.check_photo(str(bomb))
    Image.new('1', (9000, 6000)).save(bomb)
    with pytest.raises(ImageError, match='million pixels'):
        web.check_photo(str(bomb))
    Image.new('1', (900, 600)).save(bomb)
    web.check_photo(str(bomb))


def test_the_page_shows_what_predict_draws(tmp_path, photo, detector):
    """Also for a photograph that a camera has rotated."""
    predictor = Predictor(detector, 'cpu', score_thr=0.05)
    image, exif = Image.open(photo).convert('RGB'), Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'a.png', exif=exif)
    file, text = web.predict_photo(predictor, str(tmp_path / 'a.png'), tmp_path / 'out.jpg')
    predictor(photo).save(tmp_path / 'expected.jpg')
    drawn, expected = cv2.imread(file), cv2.imread(str(tmp_path / 'expected.jpg'))
    assert drawn.shape == expected.shape and f'{image.width} x {image.height} pixels' in text
    assert np.abs(drawn.astype(int) - expected).mean() < (1 if photo.endswith('.png') else 8)
    maps = web.draw_maps(predictor, photo, file, 3, (drawn.shape[1] - 0.4, drawn.shape[0] - 0.4))
    assert [item.shape for item in maps] == [(image.height, image.width, 3)] * 3
    assert (maps[0] != maps[1]).any()


@pytest.mark.parametrize('config', [SEGMENTOR, CLASSIFIER])
def test_other_kinds_of_models(tmp_path, photo, config):
    gradio = pytest.importorskip('gradio')
    if config == CLASSIFIER:
        pytest.importorskip('mmpretrain')
    predictor = Predictor(save_random_model(config, tmp_path), 'cpu')
    small = tmp_path / 'small.png'
    cv2.imwrite(str(small), cv2.resize(cv2.imread(photo), (48, 32)))
    page = web.build_page(gradio, predictor, tmp_path)
    shown = {
        block.label: block.visible
        for block in page.blocks.values()
        if isinstance(block, gradio.Slider)
    }
    assert shown == {'Score threshold': False, 'Tile size in pixels': config == SEGMENTOR}
    file, text = web.predict_photo(predictor, str(small), tmp_path / 'out.jpg')
    assert cv2.imread(file).shape == (149, 224, 3) and text.startswith('48 x 32 pixels')
    assert web.draw_maps(predictor, str(small), file, 0, (223, 148))[2].shape == (32, 48, 3)


def test_a_port_in_use_and_a_missing_package(detector, tmp_path, monkeypatch, capsys):
    pytest.importorskip('gradio')
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        assert web.web(detector, port=port) == 2
    assert f'Port {port} of 127.0.0.1 is in use' in capsys.readouterr().err
    assert web.web(detector, host='no.such.host.invalid') == 2
    assert 'name another' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'gradio', None)
    for name in ('GRADIO_ANALYTICS_ENABLED', 'GRADIO_RUN_HISTORY', 'NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, 'before')
    assert web.web(detector, port=0) == 2
    assert "needs gradio: pip install '.[web]'" in capsys.readouterr().err
