"""What a first run on a GPU usually breaks, in the operators of the stand-in: nothing to do, strides, autocast."""

import importlib

import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
    pytest.mark.skipif(
        not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
    ),
]
ops = importlib.import_module('mmcv.ops')  # after install(), whatever order imports are sorted into


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_no_boxes(mode):
    boxes, scores = torch.zeros(0, 4, device='cuda'), torch.zeros(0, device='cuda')
    for suppress in (ops.nms, ops.soft_nms):
        dets, inds = suppress(boxes, scores, 0.5)
        assert dets.shape == (0, 5) and inds.shape == (0,) and dets.is_cuda and inds.is_cuda
    assert ops.nms_match(torch.zeros(0, 5, device='cuda'), 0.5) == []
    x = torch.randn(2, 3, 8, 8, device='cuda', requires_grad=True)
    pooled = ops.roi_align(x, torch.zeros(0, 5, device='cuda'), (2, 2), 1.0, 0, mode, True)
    assert pooled.shape == (0, 3, 2, 2)
    pooled.sum().backward()
    assert not x.grad.any()


def strided(x):
    """The same numbers with channels last."""
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_pooling_maps_with_channels_last(mode):
    x = torch.randn(2, 3, 9, 11)
    rois = torch.tensor([[0.0, 0, 0, 5, 5], [1, 1, 1, 7, 6]])
    results = []
    for device in ('cpu', 'cuda'):
        map_ = strided(x.to(device))
        pooled = ops.roi_align(map_, rois.to(device), (3, 2), 1.0, 0, mode, True)
        pooled.backward(
            strided(torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)).to(device)
        )
        results.append((pooled.detach().cpu(), map_.grad.cpu()))
    for mine, theirs in zip(*reversed(results)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_convolution_under_autocast(dtype):
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x, results = torch.randn(2, 4, 7, 6), []
    for device in ('cpu', 'cuda'):
        layer.to(device).zero_grad()
        image = strided(x.to(device))
        with torch.autocast(device, dtype=dtype):
            out = layer(image)
        assert out.dtype == dtype
        out.float().square().mean().backward()
        grads = [image.grad, *(weight.grad for weight in layer.parameters())]
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
        results.append([out.detach().float().cpu(), *(grad.cpu() for grad in grads)])
    for mine, theirs in zip(*reversed(results)):
        error = (mine - theirs).norm() / theirs.norm().clamp(min=1e-3)
        assert error < (0.02 if dtype == torch.float16 else 0.1)
