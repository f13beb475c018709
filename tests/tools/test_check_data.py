"""tools/check_data.py: what it prints and writes, in this process; one test runs the tool itself."""

import json
import os
import time

import cv2
import pytest
from tool_runs import DETECTION, ROOT, SEGMENTATION

from swinv2_mm.apis.data_report import report

REAL_DATA = os.environ.get('SWINV2_MM_DATA', '')
REAL = pytest.mark.skipif(
    not REAL_DATA, reason='SWINV2_MM_DATA does not name a folder of real data'
)


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION])
def test_clean_data(root, capsys, tmp_path, config):
    assert report(config, sample=None, show_dir=str(tmp_path / 'drawn')) == 0
    seen = capsys.readouterr().out
    assert '0 errors, ' in seen and 'error ' not in seen
    assert 'train: images by longer side, up to: 64 4' in seen or '64 ' in seen
    assert 'by class: ' in seen
    pictures = sorted((tmp_path / 'drawn').glob('*/*.png'))
    first = 'train/000000_shape_00000.png'
    assert str(pictures[0]).endswith(first) and pictures[-1].parent.name == 'val'
    assert len({cv2.imread(str(picture)).tobytes() for picture in pictures}) == len(pictures)


def test_findings_are_grouped_and_written_with_all_ids(root, capsys, tmp_path):
    path = root / 'annotations/instances_training.json'
    coco = json.loads(path.read_text())
    for annotation in coco['annotations']:
        del annotation['area']
    coco['annotations'][0]['bbox'] = [0, 0, float('nan'), 2]
    path.write_text(json.dumps(coco))
    file = tmp_path / 'found.json'
    assert report(DETECTION, json_file=str(file)) == 2
    lines = capsys.readouterr().out.splitlines()
    count = len(coco['annotations'])
    assert any(
        line.startswith(f'error area-missing ({count}): {count} of {count}') for line in lines
    )
    assert f'    and {count - 5} more' in lines
    assert lines[-1] == '2 errors, 0 warnings'
    found = {finding['kind']: finding for finding in json.loads(file.read_text())['findings']}
    assert found['area-missing']['count'] == len(found['area-missing']['items']) == count
    assert found['box-not-finite']['items'] == [str(coco['annotations'][0]['id'])]


def test_the_parts_and_the_sample_can_be_chosen(root, capsys):
    images = sorted((root / 'images/training').iterdir())
    images[1].write_bytes(b'')
    assert report(DETECTION, split=['val']) == 0
    assert report(DETECTION, split=['train'], sample=None) == 2
    assert (
        f'1 of 6 image files read of train_dataloader.dataset are empty: {images[1]}'
        in capsys.readouterr().out
    )
    assert report(DETECTION, split=['train'], sample=1) == 2  # the pipeline meets it
    assert f'{images[1]} cannot be read as a picture' in capsys.readouterr().out


def test_a_config_that_does_not_exist(capsys):
    assert report('none.py') == 2
    assert 'The config none.py does not exist' in capsys.readouterr().out


def test_the_tool_itself(run_tool):
    process = run_tool('tools/check_data.py', SEGMENTATION, '--all', '--split', 'train')
    assert process.returncode == 0, process.stderr
    assert 'train: pixels by class: background ' in process.stdout
    process = run_tool('tools/check_data.py', SEGMENTATION, env={'SWINV2_MM_SHAPES': '/nowhere'})
    assert process.returncode == 2
    assert 'error paths: The data root /nowhere' in process.stdout


@REAL
@pytest.mark.parametrize('name', ['pennfudan', 'camvid', '_coco', 'ade20k'])
def test_real_data_have_no_errors(capsys, name):
    config = min(
        path
        for path in ROOT.glob('configs/*/*.py')
        if name in path.name and '_base_' not in path.parts and '-cr' not in path.name
    )
    start = time.process_time()
    assert report(str(config), sample=None) == 0, capsys.readouterr().out
    assert time.process_time() - start < 60
