"""The quickstart configs and their hooks run under mmdet's and mmseg's own tools/train.py."""

import json
from pathlib import Path

import mmdet
import mmseg
import pytest
from tool_runs import DETECTION, NO_WORKERS, SEGMENTATION


def stock_tool(library):
    """The tools/train.py that a library's wheel carries."""
    tool = Path(library.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not tool.is_file():
        pytest.skip(f'this {library.__name__} is installed without its tools')
    return tool


@pytest.mark.parametrize(
    ('library', 'config', 'options', 'metric', 'checkpoint'),
    [
        (mmdet, DETECTION, ('train_cfg.max_epochs=1',), 'coco/segm_mAP', 'epoch_1.pth'),
        (
            mmseg,
            SEGMENTATION,
            ('train_cfg.max_iters=2', 'train_cfg.val_interval=2'),
            'mIoU',
            'iter_2.pth',
        ),
    ],
    ids=['mmdet', 'mmseg'],
)
def test_quickstarts_run_under_the_libraries_own_tools(
    run_tool, tmp_path, library, config, options, metric, checkpoint
):
    process = run_tool(
        stock_tool(library),
        config,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *NO_WORKERS,
        *options,
        fresh=True,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    assert metric in process.stdout
    assert (tmp_path / checkpoint).is_file()
    assert 'learning rate: ' in process.stdout
    assert metric.rsplit('/', 1)[-1] in json.loads((tmp_path / 'metrics.json').read_text())
