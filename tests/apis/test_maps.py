"""Maps equal what the reference attention and the plain network compute, at the place in the image."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_swin import naive_bias
from random_models import CLASSIFIER, DETECTOR, SEGMENTOR, save_random_model
from small_backbones import build

from swinv2_mm import Predictor
from swinv2_mm.apis.maps import (
    attention_map,
    feature_map,
    find_backbone,
    position_bias,
    similarity_map,
    token_attention,
)
from swinv2_mm.apis.predictor import ImageError
from swinv2_mm.apis.prepared_image import prepare_image
from swinv2_mm.engine.errors import SetupError

ROOT = Path(__file__).parents[2]
NOISE = np.random.default_rng(0).integers(0, 255, (36, 48, 3), np.uint8)


@pytest.fixture(params=['plain', 'CR'])
def backbone(request, randomize):
    return randomize(build(request.param)).eval()


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    found = {}
    for name, config in (('detector', DETECTOR), ('segmentor', SEGMENTOR)):
        (folder / name).mkdir()
        found[name] = Predictor(save_random_model(config, folder / name), 'cpu', score_thr=0.0)
    return found


@pytest.mark.parametrize('block', [0, 1])
def test_the_weights_of_all_tokens_reproduce_the_output_of_the_attention(backbone, block):
    """Padded windows, shifted in the second block."""
    seen, attention = [], backbone.layers[0].blocks[block].attn
    attention.register_forward_hook(lambda _, args, out: seen.extend((*args, out)))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 35, 49))
        x, partition, expected = seen
        assert any(partition.padding) and any(partition.shift) == bool(block)
        values = attention.project(x)[0].chunk(3, -1)[2].unflatten(-1, (attention.num_heads, -1))
        for row, col in np.ndindex(partition.size):
            weights = token_attention(attention, x, partition, row, col)
            torch.testing.assert_close(weights.sum((1, 2)), torch.ones(len(weights)))
            mixed = torch.einsum('nhw,hwnd->nd', weights, values).flatten()
            torch.testing.assert_close(
                attention.proj(mixed), expected[0, row, col], atol=1e-4, rtol=1e-4
            )


def test_attention_is_of_the_token_at_the_point(backbone):
    found = attention_map(backbone, NOISE, (13, 22), stage=0, block=0)
    assert found.shape == (36, 48) and found.dtype == np.float32
    assert found[::4, ::4].sum() == pytest.approx(1, abs=1e-5)
    inside = np.zeros((36, 48), bool)
    inside[16:32, 0:16] = True  # windows of 4 x 4 tokens of 4 x 4 pixels
    assert (found[inside] > 0).all() and (found[~inside] == 0).all()
    same = attention_map(backbone, NOISE, (15, 20), stage=0, block=0)
    assert (same == found).all()
    assert (attention_map(backbone, NOISE, (16, 22), 0, 0) != found).any()
    shifted = attention_map(backbone, NOISE, (13, 22), stage=0, block=1) > 0
    assert shifted[8:24, 8:24].all() and shifted.sum() == 256


def test_similarity_is_the_cosine_of_the_maps_of_the_backbone(backbone):
    inputs = prepare_image(backbone, NOISE).inputs
    with torch.no_grad():
        features = backbone(inputs)[0]
        cosine = F.cosine_similarity(features, features[:, :, 5, 3, None, None], dim=1)
    expected = F.interpolate(cosine[None], scale_factor=4, mode='bilinear')[0, 0].numpy()
    found = similarity_map(backbone, NOISE, (13, 22), stage=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_are_principal_components(backbone):
    with torch.no_grad():
        features = backbone(prepare_image(backbone, NOISE).inputs)[0][0].flatten(1).T
    centred = features - features.mean(0)
    first = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    smooth = F.interpolate(first.view(1, 1, 9, 12), scale_factor=4, mode='bilinear')
    found = feature_map(backbone, NOISE, stage=0)
    assert found.shape == (36, 48, 3) and found.dtype == np.uint8
    correlation = np.corrcoef(found[..., 0].ravel(), smooth.numpy().ravel())[0, 1]
    assert abs(correlation) > 0.99
    assert (found == feature_map(backbone, NOISE, stage=0)).all()


def test_position_bias_is_that_of_the_paper(randomize):
    backbone = randomize(build('plain'))
    state = {
        f'attn.{k}': v.double() for k, v in backbone.layers[0].blocks[1].attn.state_dict().items()
    }
    pairs = naive_bias(list(np.ndindex(4, 4)), (4, 4), (0, 0), state).view(-1, 4, 4, 4, 4)
    found = position_bias(backbone, 0, 1)
    assert found.shape == (2, 7, 7)
    for row, col, key_row, key_col in np.ndindex(4, 4, 4, 4):
        np.testing.assert_allclose(
            found[:, row - key_row + 3, col - key_col + 3],
            pairs[:, row, col, key_row, key_col].detach().numpy(),
            atol=1e-5,
        )


def place_of_a_square(prepared):
    """Return the centre of a bright square in the input, and where the maps expect it."""
    bright = prepared.inputs[0].sum(0)[: prepared.used[0], : prepared.used[1]]
    weights = (bright - bright.median()).clamp(min=0).double()
    rows, cols = (torch.arange(side).double() + 0.5 for side in bright.shape)
    found = [
        (weights.sum(1 - axis) * line).sum() / weights.sum()
        for axis, line in ((0, rows), (1, cols))
    ]
    expected = prepared.pixels(0)[29:38].mean(), prepared.pixels(1)[79:88].mean()
    return [float(value) for value in found], expected


def with_square():
    image = np.zeros((90, 121, 3), np.uint8)
    image[29:38, 79:88] = 255
    return image


@pytest.mark.parametrize('name', ['detector', 'segmentor'])
def test_coordinates_are_those_of_the_image_before_resizing(models, name):
    predictor, image = models[name], with_square()
    prepared = prepare_image(predictor, image)
    found, expected = place_of_a_square(prepared)
    assert found == pytest.approx(expected, abs=0.6)
    assert prepared.scale[0] != 1 or name == 'segmentor'
    weights = attention_map(predictor, image, (83, 33), stage=1)
    assert weights.shape == (90, 121) and weights[33, 83] > 0
    same = attention_map(predictor.model, image, (83, 33), stage=1)
    assert (same == weights).all()


def test_a_crop_of_a_classifier(tmp_path):
    pytest.importorskip('mmpretrain')
    pytest.importorskip('sklearn')
    model = Predictor(save_random_model(CLASSIFIER, tmp_path), 'cpu').model
    model.cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=72, edge='short'),
        dict(type='CenterCrop', crop_size=64),
        dict(type='PackInputs'),
    ]
    prepared = prepare_image(model, with_square())
    found, expected = place_of_a_square(prepared)
    assert prepared.used == (64, 64) and found == pytest.approx(expected, abs=0.6)
    similar = similarity_map(model, with_square(), (83, 33), 0)
    assert similar.shape == (90, 121)
    outside = np.ones((90, 121), bool)
    outside[5:85, 20:101] = False
    assert (similar[outside] == 0).all() and (similar[~outside] != 0).any()
    with pytest.raises(SetupError, match='that the test pipeline cuts out'):
        attention_map(model, with_square(), (3, 33))


def test_mistakes_are_named_and_the_model_stays_as_it_was(backbone):
    backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    feature_map(backbone, NOISE)
    assert backbone.training and not backbone.layers[1]._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(
        SetupError, match=r'The point \(48, 0\) is outside of the image, which has 48 x 36'
    ):
        attention_map(backbone, NOISE, (48, 0))
    with pytest.raises(SetupError, match='outside'):
        similarity_map(backbone, NOISE, (0, -1))
    with pytest.raises(
        SetupError, match='Stage 2 does not exist: the backbone has the stages 0 to 1'
    ):
        feature_map(backbone, NOISE, 2)
    with pytest.raises(SetupError, match='Block -3 does not exist: stage 0 has the blocks 0 to 1'):
        position_bias(backbone, 0, -3)
    with pytest.raises(SetupError, match='is Linear, not SwinTransformerV2'):
        find_backbone(torch.nn.Linear(1, 1))
    with pytest.raises(ImageError, match='cannot be read'):
        feature_map(backbone, 'missing.jpg')
    with pytest.raises(SetupError, match='use load_model'):
        feature_map(build('plain', in_channels=4), NOISE)


def run_snippet(name):
    page = (ROOT / 'docs/model_pictures.md').read_text()
    (code,) = re.findall(rf'<!-- test: {name} -->\n```python\n(.*?)```', page, re.DOTALL)
    names = {}
    exec(compile(code, 'docs/model_pictures.md', 'exec'), names)
    return names


@pytest.fixture
def as_on_the_page(models, tmp_path, monkeypatch):
    folder = tmp_path / 'work_dirs/demo'
    folder.mkdir(parents=True)
    shutil.copy(models['detector'].model.checkpoint, folder / 'iter_1.pth')
    cv2.imwrite(str(tmp_path / 'photo.jpg'), cv2.resize(NOISE, (128, 96)))
    monkeypatch.chdir(tmp_path)


def test_the_example_of_the_page_runs(as_on_the_page):
    names = run_snippet('maps')
    assert names['attention'].shape == (96, 128) and names['bias'].ndim == 3


def test_grad_cam_by_hooks_equals_the_gradient_of_the_plain_network(as_on_the_page):
    pytest.importorskip('pytorch_grad_cam')
    names = run_snippet('grad-cam')
    assert cv2.imread('cam.jpg').shape == (96, 128, 3)
    backbone, inputs = names['model'].backbone, names['prepared'].inputs
    x = backbone.patch_embed(inputs)
    for layer in backbone.layers[:2]:
        x = layer.downsample(layer(x))
    seen = backbone.layers[2](x).detach().requires_grad_()
    backbone.layers[2].forward = lambda x: seen  # no hook
    try:
        names['Scores']()(inputs)[0, 0].backward()
    finally:
        del backbone.layers[2].forward
    heat = (seen * seen.grad.mean((1, 2), keepdim=True)).sum(-1).relu()[0].detach().numpy()
    assert heat.max() > 0
    heat = cv2.resize(heat, inputs.shape[:1:-1])
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    found = names['cam'](inputs, targets=[lambda scores: scores[0]])[0]
    np.testing.assert_allclose(found, heat, atol=1e-4)
