"""metrics.json has plain keys and is plain json."""

import json

import numpy as np

from swinv2_mm.engine.metrics import plain_metrics, write_metrics


def test_prefixes_go_unless_two_keys_would_become_one():
    assert plain_metrics({'coco/bbox_mAP': 0.5, 'mIoU': 3}) == {'bbox_mAP': 0.5, 'mIoU': 3.0}
    assert plain_metrics({'a/mAP': 0.5, 'b/mAP': 0.25}) == {'a/mAP': 0.5, 'b/mAP': 0.25}


def test_the_file_is_json_whatever_the_values(tmp_path):
    path = write_metrics({'mIoU': np.float32(40.119998931884766), 'mAcc': float('nan')}, tmp_path)
    assert path == tmp_path / 'metrics.json'
    assert json.loads(path.read_text()) == {'mIoU': 40.119999, 'mAcc': None}
