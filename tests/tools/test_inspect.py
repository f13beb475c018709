"""The command `inspect`."""

import json

import cv2
import numpy as np
from random_models import ROOT, SEGMENTOR, save_random_model


def test_the_command_on_a_checkpoint_with_a_photograph(run_tool, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(
        cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))[1]
    )
    model, table = save_random_model(SEGMENTOR, tmp_path), tmp_path / 'a/t.json'
    photo, out = tmp_path / 'photo.jpg', tmp_path / 'out'
    tool, here = ROOT / 'tools/inspect_model.py', ('--device', 'cpu')
    done = run_tool(tool, model, photo, '--point', '30,40', '--out', out, '--json', table, *here)
    assert done.returncode == 0, done.stderr
    content = json.loads(table.read_text())
    names = [part['name'] for part in content['parts']]
    assert names[0] == 'backbone: patches' and names[-1] == 'decode_head'
    assert content['parts'][-1]['macs'] > 0
    assert content['total']['flops'] == 2 * sum(part['macs'] for part in content['parts'])
    assert 'decode_head' in done.stdout + done.stderr
    pictures = {path.stem: cv2.imread(str(path)) for path in out.iterdir()}
    assert sorted(pictures) == ['attention', 'features', 'position_bias', 'similarity']
    assert all(picture.std() > 5 for picture in pictures.values())
    for arguments, reason in (
        ((model, photo, '--point', '120,0'), 'is outside of the image, which has 120 x 90 pixels'),
        ((model, '--point', '1,1'), '--point needs an image'),
        ((SEGMENTOR, photo), 'name a checkpoint'),
        ((model, tmp_path / 'no.jpg'), 'no.jpg'),
        (('nothing.py',), 'nothing.py'),
    ):
        done = run_tool(tool, *arguments, *here)
        assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
        assert reason in done.stdout + done.stderr


def test_the_command_on_a_config_by_name(run_tool):
    done = run_tool(
        ROOT / 'tools/inspect_model.py', 'mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco', '--device', 'cpu'
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    page = (ROOT / 'docs/model_pictures.md').read_text()
    shown = page.split('```\n$ swinv2-mm inspect')[1].split('```')[0].splitlines()[2:]
    assert len(shown) == 12
    for line in shown:
        assert line in text
