"""The command `analyze`, and the pictures and event files of a training."""

import csv
import json
import re

import cv2
import numpy as np
import pytest
from random_models import CLASSIFIER, DETECTOR, ROOT, SEGMENTOR, save_random_model
from tool_runs import DETECTION, FAST, NO_WORKERS

from swinv2_mm.datasets.digits import write_digits

TOOL = ROOT / 'tools/analyze.py'
LOADER = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')


def rows(path):
    with path.open() as file:
        return list(csv.reader(file))


def counts(folder):
    """Return the matrix `(true, predicted)` of a report."""
    return np.array([row[1:] for row in rows(folder / 'confusion_matrix.csv')[1:]], int)


@pytest.fixture
def perfect(environment, root):
    """The annotations of the test set as results, the second class called the first in one object."""
    content = json.loads(next(root.rglob('*val*.json')).read_text())
    results = [
        {key: item[key] for key in ('image_id', 'category_id', 'bbox', 'segmentation')}
        | {'score': 0.9}
        for item in content['annotations']
    ]
    return content, results


def test_results_of_a_detector(run_tool, root, tmp_path, perfect):
    content, results = perfect
    ids = [item['id'] for item in content['categories']]
    changed, missed = results[0], results[-1]
    was = ids.index(changed['category_id'])
    changed['category_id'] = ids[was - 1]
    missed['score'] = 0.1
    (tmp_path / 'p.json').write_text(json.dumps(results))
    model = save_random_model(DETECTOR, tmp_path)
    out = tmp_path / 'out'
    options = ['--results', tmp_path / 'p.json', '--worst', '2', '--config', DETECTOR]
    done = run_tool(TOOL, model, '--out', out, *options, env={'SWINV2_MM_SHAPES': str(root)})
    assert done.returncode == 0, done.stderr
    assert re.search(
        r'means over the classes: precision 0\.\d+, .*box AP 0\.\d+', done.stderr + done.stdout
    )
    matrix = counts(out)
    assert matrix[was, was - 1] == 1
    assert matrix[ids.index(missed['category_id']), -1] == 1
    assert np.trace(matrix) == len(results) - 2 and matrix.sum() == len(results)
    head, *classes = rows(out / 'classes.csv')
    assert head[:5] == ['class', 'count', 'precision', 'recall', 'F1'] and 'mask AP' in head
    assert [row[0] for row in classes] == [item['name'] for item in content['categories']] + [
        'mean'
    ]
    bad = {changed['image_id'], missed['image_id']}
    names = {image['file_name'] for image in content['images'] if image['id'] in bad}
    images = rows(out / 'images.csv')[1:]
    assert {row[0] for row in images if float(row[1]) < 1} == names
    assert len(list((out / 'worst').iterdir())) == 2
    page = (out / 'report.html').read_text()
    for name in (
        'confusion_matrix.png',
        'precision_recall.png',
        *(f.name for f in (out / 'worst').iterdir()),
    ):
        assert name in page
    assert cv2.imread(str(out / 'confusion_matrix.png')) is not None


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTOR, CLASSIFIER])
def test_a_model_is_run(run_tool, root, tmp_path, config):
    env = {'SWINV2_MM_SHAPES': str(root)}
    if config == CLASSIFIER:
        pytest.importorskip('mmpretrain')
        pytest.importorskip('sklearn')
        write_digits(tmp_path / 'digits')
        env['SWINV2_MM_DIGITS'] = str(tmp_path / 'digits')
    model = save_random_model(config, tmp_path)
    out = tmp_path / 'out'
    options = ['--device', 'cpu', '--worst', '3', '--score-thr', '0.05', '--cfg-options', *LOADER]
    done = run_tool(
        *(TOOL, model, '--config', config, '--split', 'val', '--out', out, *options),
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((out / 'worst').iterdir())) == 3
    matrix = counts(out)
    if config == CLASSIFIER:
        assert matrix.sum() == len(rows(out / 'images.csv')) - 1
    if config == SEGMENTOR:
        assert matrix.sum() == 4 * 64 * 64
        test = run_tool(
            *(
                ROOT / 'tools/test.py',
                config,
                model,
                '--device',
                'cpu',
                '--work-dir',
                tmp_path / 'w',
            ),
            *('--cfg-options', *FAST),
            env=env,
        )
        assert test.returncode == 0, test.stderr
        metrics = json.loads((tmp_path / 'w/test_metrics.json').read_text())
        assert np.trace(matrix) / matrix.sum() * 100 == pytest.approx(metrics['aAcc'], abs=0.01)
        head, *_, mean = rows(out / 'classes.csv')
        found = float(mean[head.index('IoU')]) * 100
        assert found == pytest.approx(metrics['mIoU'], abs=0.06)


@pytest.mark.parametrize(
    'options, message',
    [
        (['--split', 'test', '--score-thr', '2'], 'expected a number from 0 to 1'),
        (['--results', 'none.json'], 'The file of results none.json does not exist'),
        (['--results', SEGMENTOR], 'the results of a detector'),
    ],
)
def test_mistakes_end_with_a_sentence(run_tool, tmp_path, options, message):
    model = save_random_model(SEGMENTOR, tmp_path)
    done = run_tool(TOOL, model, '--out', tmp_path / 'out', '--device', 'cpu', *options)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert 'Traceback' not in done.stdout + done.stderr


def test_pictures_and_event_files_of_a_resumed_training(run_tool, root, tmp_path):
    accumulators = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    work = tmp_path / 'work'
    options = [*NO_WORKERS, 'default_hooks.logger.interval=1', 'train_cfg.val_interval=1']
    for epochs in ('1', '2'):
        done = run_tool(
            *(
                ROOT / 'tools/train.py',
                DETECTION,
                '--work-dir',
                work,
                '--device',
                'cpu',
                '--resume',
            ),
            *('--cfg-options', *options, f'train_cfg.max_epochs={epochs}'),
            env={'SWINV2_MM_SHAPES': str(root)},
        )
        assert done.returncode == 0, done.stderr
        assert 'no picture' not in done.stdout + done.stderr
    pictures = sorted(path.name for path in (work / 'val_pictures').iterdir())
    assert pictures == ['epoch_1.jpg', 'epoch_2.jpg']
    assert cv2.imread(str(work / 'curves.png')) is not None
    runs = sorted(work.glob('*/vis_data'))
    steps = [
        [event.step for event in accumulators.EventAccumulator(str(run)).Reload().Scalars('loss')]
        for run in runs
    ]
    assert steps == [[1, 2, 3], [4, 5, 6]]
