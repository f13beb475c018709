"""The config of docs/multiband.md on CamVid's photographs, or generated ones, with bands added to them."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tool_runs import ROOT

import swinv2_mm
from swinv2_mm.datasets.multiband import band_statistics

rasterio = pytest.importorskip('rasterio')
CAMVID = Path(os.environ.get('SWINV2_MM_DATA', 'data')) / 'camvid'
NANO = """
arch = dict(_delete_=True, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
model.update(
    backbone=dict(in_channels=6, arch=arch, window_size=4, init_cfg=dict(
        _delete_=True, type='Pretrained', checkpoint={checkpoint!r})),
    decode_head=dict(num_classes=3, in_channels=[16, 32, 64, 128], channels=16, pool_scales=(1, 2)),
    auxiliary_head=dict(num_classes=3, in_channels=64, channels=16))
load.update(mean={mean}, std={std})
for loader in (train_dataloader, val_dataloader):
    loader.update(num_workers=0, persistent_workers=False, batch_size=2 if loader is train_dataloader else 1)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory, environment):
    """Six bands: blue, green and red of photographs, grey, blurred grey and edges."""
    source, parts = CAMVID, ('train', 'val')
    if not CAMVID.is_dir():
        source, parts = Path(environment['SWINV2_MM_SHAPES']), ('training', 'validation')
    root = tmp_path_factory.mktemp('data') / 'multiband'
    for part, given in zip(('train', 'val'), parts):
        for kind in ('images', 'labels'):
            (root / kind / part).mkdir(parents=True)
        for file in sorted((source / 'images' / given).iterdir())[:3]:
            image = cv2.resize(cv2.imread(str(file)), (160, 120))
            grey = image.mean(2)
            bands = [*np.moveaxis(image, 2, 0), grey, cv2.blur(grey, (9, 9)), np.gradient(grey)[0]]
            target = root / 'images' / part / f'{file.stem}.tif'
            with rasterio.open(
                target, 'w', 'GTiff', width=160, height=120, count=6, dtype='int16', compress='lzw'
            ) as out:
                out.write((np.stack(bands) * 40).astype(np.int16))
            label = cv2.imread(
                str(source / 'annotations' / given / f'{file.stem}.png'), cv2.IMREAD_UNCHANGED
            )
            label = cv2.resize(label, (160, 120), interpolation=cv2.INTER_NEAREST)
            Image.fromarray(np.digitize(label, [1, 4]).astype(np.uint8)).save(
                root / 'labels' / part / f'{file.stem}.png'
            )
    return root


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_new_config_measures_the_bands(folder, run_tool, tmp_path):
    config = tmp_path / 'bands.py'
    run = run_tool('tools/new_config.py', folder, '--model', 'upernet_swinv2-nano', '-o', config)
    assert run.returncode == 0, run.stdout + run.stderr
    cfg = Config.fromfile(config)
    mean, std = band_statistics((folder / 'images/train').glob('*.tif'))
    for part in ('train', 'test'):
        load = cfg[f'{part}_pipeline'][0]
        np.testing.assert_allclose(load.mean, mean, rtol=1e-4)
        np.testing.assert_allclose(load.std, std, rtol=1e-4)
    assert cfg.model.backbone.in_channels == 6
    assert cfg.model.data_preprocessor.mean is None
    assert 'PhotoMetricDistortion' not in cfg.pretty_text


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_six_bands_from_rgb_weights_to_pictures(folder, run_tool, tmp_path):
    page = (ROOT / 'docs/multiband.md').read_text()
    leaf = re.search(r'<!-- file: multiband.py -->\n```python\n(.*?)```', page, re.DOTALL)[1]
    small = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    source = swinv2_mm.SwinTransformerV2(small, window_size=4)
    torch.save(source.state_dict(), tmp_path / 'rgb.pth')
    mean, std = band_statistics((folder / 'images/train').glob('*.tif'))
    leaf = leaf.replace("'configs/", f"'{ROOT}/configs/")
    settings = NANO.format(checkpoint=str(tmp_path / 'rgb.pth'), mean=mean, std=std)
    (tmp_path / 'multiband.py').write_text(leaf + settings)
    env = {'SWINV2_MM_DATA': str(folder.parent)}
    options = ('--device', 'cpu', '--work-dir', tmp_path / 'run')
    run = run_tool('tools/train.py', tmp_path / 'multiband.py', *options, '--max-iters', 2, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'patch_embed.proj.weight (from 3 to 6 channels)' in log
    pictures = tmp_path / 'pictures'
    command = ('tools/test.py', tmp_path / 'multiband.py', tmp_path / 'run', *options)
    run = run_tool(*command, '--show-dir', pictures, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert 0 <= json.loads((tmp_path / 'run/test_metrics.json').read_text())['mIoU'] <= 100
    assert len(list(pictures.iterdir())) == 3
    drawn = cv2.imread(str(sorted(pictures.iterdir())[0]))
    assert drawn.std() > 20
    shown = tmp_path / 'shown'
    run = run_tool('tools/check_data.py', tmp_path / 'multiband.py', '--show-dir', shown, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(list(shown.glob('*/*.png'))) == 6
    next((folder / 'images/train').iterdir()).write_bytes(b'text')
    run = run_tool('tools/check_data.py', tmp_path / 'multiband.py', '--split', 'train', env=env)
    assert run.returncode == 2
    assert 'cannot be read as bands' in run.stdout + run.stderr
