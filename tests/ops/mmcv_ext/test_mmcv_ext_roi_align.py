"""Compare `roi_align` of mmcv on the stand-in to loops in float64."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from swinv2_mm.ops import mmcv_ext
from swinv2_mm.ops.mmcv_ext import roi_align as implementation

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()
extension = importlib.import_module('mmcv._ext')


def hat(position, size):
    """Return (size,) weights of linear interpolation; up to one pixel outside counts as border."""
    if position < -1 or position > size:
        return np.zeros(size)
    position = min(max(position, 0.0), size - 1.0)
    return np.maximum(0.0, 1.0 - np.abs(np.arange(size) - position))


def sample_weights(roi, bins, size, scale, ratio, aligned):
    """Return {(ph, pw): [(y, x, (H, W) weights), ...]} of one region in float64."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (c * scale - shift for c in roi[1:])
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    grid_h = ratio if ratio > 0 else math.ceil(height / bins[0])
    grid_w = ratio if ratio > 0 else math.ceil(width / bins[1])
    out = {}
    for ph in range(bins[0]):
        for pw in range(bins[1]):
            ys = [y1 + (ph + (i + 0.5) / grid_h) * height / bins[0] for i in range(grid_h)]
            xs = [x1 + (pw + (i + 0.5) / grid_w) * width / bins[1] for i in range(grid_w)]
            out[ph, pw] = [
                (y, x, np.outer(hat(y, size[0]), hat(x, size[1]))) for y in ys for x in xs
            ]
    return out


def naive_roi_align(feats, rois, grad, bins, scale, ratio, mode, aligned):
    """Return output and gradient of the features as float64 tensors."""
    feats, rois, grad = (t.double().numpy() for t in (feats, rois, grad))
    output, grad_feats = np.zeros(grad.shape), np.zeros(feats.shape)
    for k, roi in enumerate(rois):
        image = feats[int(roi[0])]
        for (ph, pw), points in sample_weights(
            roi, bins, image.shape[1:], scale, ratio, aligned
        ).items():
            if not points:
                continue
            values = np.array(
                [[(plane * w).sum() for plane in image] for _, _, w in points]
            )  # (S, C)
            for c in range(len(image)):
                if mode == 'avg':
                    output[k, c, ph, pw] = values[:, c].mean()
                    spread = sum(w for _, _, w in points) / len(points)
                else:
                    best = int(values[:, c].argmax())
                    output[k, c, ph, pw] = values[best, c]
                    spread = points[best][2]
                grad_feats[int(roi[0]), c] += grad[k, c, ph, pw] * spread
    return torch.from_numpy(output), torch.from_numpy(grad_feats)


def random_case(seed, scale, dtype=torch.float64, regions=4):
    """Return features and regions, some of them partly or fully outside the map. Corners are multiples of 1/8 pixel,
    exact in every dtype, so that float32 and float64 have the same samples."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = (
        int(torch.randint(1, n, (), generator=generator)) for n in (4, 4, 12, 15)
    )
    feats = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    corner = torch.rand(regions, 2, generator=generator) * 18 - 4
    extent = torch.rand(regions, 2, generator=generator) * 12
    corners = (torch.cat((corner, corner + extent), dim=1) * 8).round() / 8 / scale
    index = torch.randint(0, batch, (regions, 1), generator=generator)
    return feats.to(dtype), torch.cat((index, corners), dim=1).to(dtype), generator


def run(feats, rois, grad, bins, scale, ratio, mode, aligned):
    feats = feats.clone().requires_grad_()
    output = ops.roi_align(feats, rois, bins, scale, ratio, mode, aligned)
    output.backward(grad)
    return output.detach(), feats.grad


TOLERANCE = {
    torch.float64: dict(rtol=1e-9, atol=1e-10),
    torch.float32: dict(rtol=1e-4, atol=1e-5),
}


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 2])
def test_output_and_gradient_equal_the_loops(ratio, mode, aligned, dtype):
    for seed, (bins, scale) in enumerate(
        [((3, 2), 1.0), ((1, 5), 0.25), ((7, 7), 0.125), ((2, 3), 0.5)]
    ):
        feats, rois, generator = random_case(10 * seed + ratio, scale, dtype)
        grad = torch.randn(
            len(rois), feats.size(1), *bins, generator=generator, dtype=torch.float64
        ).to(dtype)
        expected = naive_roi_align(feats, rois, grad, bins, scale, ratio, mode, aligned)
        actual = run(feats, rois, grad, bins, scale, ratio, mode, aligned)
        for ours, theirs in zip(actual, expected):
            assert ours.dtype == dtype and ours.isfinite().all()
            torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_gradient_is_the_derivative(mode, aligned):
    feats = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[1, -1, 0.5, 5.3, 9], [0, 2.2, 1, 9, 3], [1, 20, 1, 30, 3]], dtype=torch.float64
    )
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 3), 0.5, 0, mode, aligned), feats
    )


def test_max_mode_reports_where_the_greatest_sample_was():
    feats = torch.zeros(1, 1, 6, 6)
    feats[0, 0, 2, 3] = 5.0
    rois = torch.tensor([[0.0, 0.5, 0.5, 5.5, 5.5]])  # five pixels wide from the centre of pixel 0
    output, y, x = (torch.full((1, 1, 1, 1), -7.0) for _ in range(3))
    extension.roi_align_forward(
        feats, rois, output, y, x,
        aligned_height=1, aligned_width=1, spatial_scale=1.0, sampling_ratio=5, pool_mode=0, aligned=True,
    )  # fmt: skip
    # Samples at 0.5, 1.5, ...: four have the maximum, and the first one is selected.
    assert (output.item(), y.item(), x.item()) == (1.25, 1.5, 2.5)


def test_a_sample_at_the_very_rim_still_gets_its_gradient():
    feats = torch.ones(1, 1, 3, 3, requires_grad=True)
    rois = torch.tensor([[0.0, -1.5, -1.5, 0.5, 0.5]])  # aligned and one sample: at (-1, -1)
    ops.roi_align(feats, rois, (1, 1), 1.0, 1, 'max', True).backward(torch.ones(1, 1, 1, 1))
    assert feats.grad[0, 0, 0, 0] == 1 and feats.grad.sum() == 1


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_no_regions(mode):
    feats = torch.rand(2, 3, 5, 7, requires_grad=True)
    output = ops.roi_align(feats, torch.zeros(0, 5), (2, 3), 0.5, 0, mode, True)
    assert output.shape == (0, 3, 2, 3)
    output.sum().backward()
    assert (feats.grad == 0).all()


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_a_region_without_area_gives_zero_and_no_gradient(mode):
    feats = torch.rand(1, 2, 5, 7, requires_grad=True)
    rois = torch.tensor([[0.0, 2, 2, 2, 2], [0, 1, 1, 3, 1]])
    output = ops.roi_align(feats, rois, (2, 2), 1.0, 0, mode, True)
    output.sum().backward()
    assert (output == 0).all() and (feats.grad == 0).all()


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_a_backward_region_is_one_pixel_when_not_aligned_and_refused_when_aligned(mode):
    feats = torch.rand(1, 2, 5, 7)
    backward = torch.tensor([[0.0, 4, 3, 2, 1]])
    empty = torch.tensor([[0.0, 4, 3, 4, 3]])
    same = [ops.roi_align(feats, rois, (2, 2), 1.0, 0, mode, False) for rois in (backward, empty)]
    assert torch.equal(*same) and (same[0] > 0).any()
    with pytest.raises(ValueError, match=r'region 0 of 1 .*4\.0, 3\.0, 2\.0, 1\.0.*x1 <= x2'):
        ops.roi_align(feats, backward, (2, 2), 1.0, 0, mode, True)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize(
    'roi', [[2.0, 0, 0, 4, 4], [-1, 0, 0, 4, 4], [0, 0, 0, math.nan, 4], [1, 0, 0, 4, math.inf]]
)
def test_regions_that_kernels_would_trip_over_are_refused(roi, aligned):
    rois = torch.tensor([[1.0, 0, 0, 4, 4], roi])
    with pytest.raises(ValueError, match=r'region 1 of 2 .* an image index from 0 to 1'):
        ops.roi_align(torch.rand(2, 2, 5, 7), rois, (2, 2), 1.0, 0, 'avg', aligned)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, mode):
    feats, rois, generator = random_case(5, 0.25, dtype)
    grad = torch.randn(len(rois), feats.size(1), 3, 2, generator=generator).to(dtype)
    output, grad_feats = run(feats, rois, grad, (3, 2), 0.25, 0, mode, True)
    exact, exact_grad = run(feats.float(), rois.float(), grad.float(), (3, 2), 0.25, 0, mode, True)
    assert output.dtype == grad_feats.dtype == dtype
    assert torch.equal(output, exact.to(dtype))
    if mode == 'avg':
        assert torch.equal(grad_feats, exact_grad.to(dtype))
    else:  # positions of the greatest samples are in half precision, as in mmcv's buffers
        torch.testing.assert_close(grad_feats.float(), exact_grad, rtol=0.1, atol=0.1)
        torch.testing.assert_close(grad_feats.float().sum(), exact_grad.sum(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_trains_through_it(dtype):
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    image = torch.randn(2, 3, 9, 11)
    rois = torch.tensor([[0.0, 1, 1, 8, 7], [1, 0.5, 2, 6, 8.5]])
    grads = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast('cpu', dtype=dtype, enabled=enabled):
            output = ops.RoIAlign((3, 3), 1.0, 0)(conv(image), rois)
        assert output.dtype == (dtype if enabled else torch.float32)
        output.float().square().sum().backward()
        grads.append(conv.weight.grad.clone())
    torch.testing.assert_close(
        grads[1], grads[0], rtol=0.05, atol=0.05 * float(grads[0].abs().max())
    )


def test_memory_layout_does_not_matter():
    feats, rois, generator = random_case(6, 1.0)
    grad = torch.randn(len(rois), feats.size(1), 2, 2, generator=generator, dtype=torch.float64)
    plain = run(feats, rois, grad, (2, 2), 1.0, 0, 'avg', True)
    strided = run(
        feats.contiguous(memory_format=torch.channels_last),
        rois.t().contiguous().t(),
        grad.flip(0).flip(0).transpose(2, 3).contiguous().transpose(2, 3),
        (2, 2), 1.0, 0, 'avg', True,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(plain, strided))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 3])
def test_the_gradient_of_the_average_equals_the_kernel(aligned, ratio, monkeypatch):
    monkeypatch.setattr(implementation, '_VALUES_AT_A_TIME', 1)  # many chunks
    feats, rois, generator = random_case(7, 0.5, regions=9)
    grad = torch.randn(len(rois), feats.size(1), 3, 2, generator=generator, dtype=torch.float64)
    kernel = torch.ops.torchvision._roi_align_backward(
        grad, rois, 0.5, 3, 2, *feats.shape, ratio, aligned
    )
    _, products = run(feats, rois, grad, (3, 2), 0.5, ratio, 'avg', aligned)
    torch.testing.assert_close(products, kernel, rtol=1e-9, atol=1e-10)


def test_deterministic_algorithms_are_respected():
    torch.use_deterministic_algorithms(True)
    try:
        feats, rois, generator = random_case(8, 1.0)
        grad = torch.randn(len(rois), feats.size(1), 2, 2, generator=generator, dtype=torch.float64)
        for mode in ('avg', 'max'):
            first, second = (run(feats, rois, grad, (2, 2), 1.0, 0, mode, True) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(first, second))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_thread_that_outlives_the_main_one():
    code = (
        'import threading, time, torch\n'
        'from swinv2_mm.ops.mmcv_ext.roi_align import _pool_average\n'
        'torch.set_num_threads(2)\n'
        'rois = torch.tensor([[0.0, 1, 1, 9, 9]]).repeat(100, 1)\n'
        'def late():\n'
        '    threading.main_thread().join()\n'
        '    print(_pool_average(torch.ones(1, 2, 16, 16), rois, 1.0, 2, 2, 0, True).mean().item())\n'
        'threading.Thread(target=late).start()\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.stdout == '1.0\n', done.stderr
