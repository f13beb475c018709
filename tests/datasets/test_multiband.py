"""Images of 1, 4, 6 and 12 bands, from the file to a trained model."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope

import swinv2_mm
from swinv2_mm.checkpoints import load_pretrained
from swinv2_mm.datasets.checks.read_files import read_records
from swinv2_mm.datasets.multiband import LoadMultibandImage, band_statistics, read_bands

rasterio = pytest.importorskip('rasterio')
SMALL = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2))


def write_tiff(path, image, **options):
    height, width, count = image.shape
    options = dict(width=width, height=height, count=count, dtype=image.dtype, **options)
    with rasterio.open(path, 'w', 'GTiff', **options) as file:
        file.write(np.moveaxis(image, 2, 0))
    return path


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 10000, (40, 50, 12), dtype=np.uint16)


@pytest.mark.parametrize(
    'options', [{}, {'compress': 'lzw'}, {'compress': 'deflate', 'interleave': 'pixel'}]
)
@pytest.mark.parametrize('bands', [None, [7, 0, 11]])
def test_tiff_files(tmp_path, image, options, bands):
    path = write_tiff(tmp_path / 'a.TIF', image, **options)
    expected = image if bands is None else image[..., bands]
    np.testing.assert_array_equal(read_bands(path, bands), expected.astype(np.float32))


@pytest.mark.parametrize('shape', [(40, 50), (40, 50, 4), (4, 40, 50)])
def test_npy_files(tmp_path, shape):
    image = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / 'a.npy', image)
    expected = image[..., None] if image.ndim == 2 else image
    expected = np.moveaxis(expected, 0, 2) if shape[0] == 4 else expected
    np.testing.assert_array_equal(read_bands(tmp_path / 'a.npy'), expected.astype(np.float32))


def test_usual_formats_are_red_green_blue_alpha(tmp_path):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (9, 8, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    np.testing.assert_array_equal(read_bands(tmp_path / 'a.png'), image.astype(np.float32))
    Image.fromarray(image[..., 0]).save(tmp_path / 'grey.png')
    np.testing.assert_array_equal(read_bands(tmp_path / 'grey.png')[..., 0], image[..., 0])


def test_pixels_without_data_become_the_mean(tmp_path, image):
    image = image[..., :4].copy()
    image[3, 5] = 65535
    path = write_tiff(tmp_path / 'a.tif', image, nodata=65535)
    mean, std = band_statistics([path])
    kept = np.delete(image.reshape(-1, 4), 3 * 50 + 5, axis=0)
    np.testing.assert_allclose(mean, kept.mean(0))
    np.testing.assert_allclose(std, kept.std(0), rtol=1e-6)
    loaded = LoadMultibandImage(mean, std).transform({'img_path': str(path)})['img']
    assert (loaded[3, 5] == 0).all()
    np.testing.assert_allclose(loaded.std((0, 1)), 1, atol=1e-3)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.npy', b'', 'not a npy file'),
        ('a.npy', np.array([{}]), 'not a npy file'),
        ('a.npy', np.zeros((2, 3, 4, 5)), 'expected numbers'),
        ('a.npy', np.array([['a']]), 'expected numbers'),
        ('a.npy', np.zeros((4, 5), complex), 'expected numbers'),
        ('a.tif', b'II*\0', 'cannot be read'),
        ('a.png', b'', 'is not an image'),
        ('a.jpg', b'text', 'is not an image'),
        ('a.npy', np.zeros((9, 9, 5)), 'has 5 bands: expected 4'),
        ('b.tif', None, 'b.tif'),
        ('b.npy', None, 'b.npy'),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        LoadMultibandImage([0] * 4, [1] * 4).transform({'img_path': str(path)})
    assert name in str(caught.value)


def test_a_band_that_is_not_there(tmp_path, image):
    path = write_tiff(tmp_path / 'a.tif', image)
    with pytest.raises(ValueError, match='has 12 bands, numbered from 0: there is no band 12'):
        read_bands(path, [0, 12])


@pytest.mark.parametrize(
    'options', [dict(mean=[0]), dict(bands=[0]), dict(std=[1, 0]), dict(show=[0, 1])]
)
def test_settings_that_do_not_fit(options):
    with pytest.raises(ValueError, match='LoadMultibandImage'):
        LoadMultibandImage(**{'mean': [0, 0], 'std': [1, 1], **options})


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_transforms_of_the_libraries_take_many_bands(tmp_path, image, scope):
    __import__(scope)
    path = write_tiff(tmp_path / 'a.tif', image)
    steps = [
        dict(type='swinv2_mm.LoadMultibandImage', mean=[5000] * 12, std=[3000] * 12),
        dict(type='RandomResize', scale=(80, 60), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomFlip', prob=1.0),
    ]
    results = {'img_path': str(path), 'seg_fields': []}
    with DefaultScope.overwrite_default_scope(scope):
        for step in steps:
            results = TRANSFORMS.build(step)(results)
    assert results['img'].shape[2] == 12 and results['flip']


@pytest.mark.parametrize('bands', [1, 4, 6, 12])
def test_rgb_weights_start_other_bands(tmp_path, bands):
    source = swinv2_mm.SwinTransformerV2(SMALL, out_indices=(0, 1))
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    model = swinv2_mm.SwinTransformerV2(SMALL, out_indices=(0, 1), in_channels=bands)
    report = load_pretrained(model, tmp_path / 'a.pth')
    assert report.adapted == {'patch_embed.proj.weight': f'from 3 to {bands} channels'}
    assert 'adapted' in report.table() and 'patch_embed.proj.weight' in report.table()
    weight, given = model.patch_embed.proj.weight, source.patch_embed.proj.weight
    if bands == 1:
        torch.testing.assert_close(weight[:, 0], given.sum(1))
        grey = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(
            model.eval()(grey)[1], source.eval()(grey.expand(1, 3, 64, 64))[1]
        )
    else:
        expected = given[:, [band % 3 for band in range(bands)]] * 3 / bands
        torch.testing.assert_close(weight, expected)


def test_other_differences_are_refused(tmp_path):
    source = swinv2_mm.SwinTransformerV2(SMALL, out_indices=(0, 1), in_channels=5)
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    model = swinv2_mm.SwinTransformerV2(SMALL, out_indices=(0, 1), in_channels=4)
    with pytest.raises(swinv2_mm.checkpoints.CheckpointError, match='shape mismatch: 1'):
        load_pretrained(model, tmp_path / 'a.pth')


def test_the_checks_read_bands(tmp_path, image):
    write_tiff(tmp_path / 'a.tif', image)
    write_tiff(tmp_path / 'b.tif', image[..., :3])
    (tmp_path / 'c.tif').write_bytes(b'text')
    loading = LoadMultibandImage([0] * 12, [1] * 12)

    class Data:
        pipeline = type('Pipeline', (), {'transforms': [loading]})
        get_data_info = staticmethod(lambda i: {'img_path': str(tmp_path / 'abcd'[i]) + '.tif'})

    records = read_records(Data, [0, 1, 2, 3], None, lambda it, *_: it, '')
    good, few, text, missing = (record.image for record in records)
    assert (good.fault, good.size) == ('', (50, 40))
    assert 'has 3 bands: expected 12' in few.fault
    assert 'cannot be read as bands' in text.fault
    assert missing.fault == 'do not exist'


def test_pictures_show_chosen_bands(tmp_path, image):
    path = write_tiff(tmp_path / 'a.tif', image)
    loading = LoadMultibandImage([0] * 2, [1] * 2, bands=[3, 9], show=[9])
    picture = loading.picture(path)
    assert picture.shape == (40, 50, 3) and picture.dtype == np.uint8
    assert (picture[..., 0] == picture[..., 2]).all()
    order = np.argsort(image[..., 9], axis=None)
    assert (np.diff(picture[..., 0].ravel()[order].astype(int)) >= 0).all()
    loaded = loading.transform({'img_path': str(path)})['img']
    np.testing.assert_array_equal(loading.picture_of(loaded), picture)


def test_config_names_it():
    step = dict(type='swinv2_mm.LoadMultibandImage', mean=[0], std=[1], show=[0])
    built = TRANSFORMS.build(Config(dict(step=step)).step)
    assert isinstance(built, LoadMultibandImage)
