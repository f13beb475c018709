"""Compare deformable convolution and attention of mmcv on the stand-in to loops over samples."""

import importlib
import itertools
import math

import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()
deform_attn = importlib.import_module('mmcv.ops.multi_scale_deform_attn')


def bilinear(plane, y, x):
    """Sample a zero-padded (H, W) map at a position; differentiable in all three."""
    value = plane.new_zeros(())
    top, left = math.floor(y.item()), math.floor(x.item())
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < plane.size(0) and 0 <= column < plane.size(1):
                value = value + plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def naive_deform_conv(
    x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups
):
    """Compute a convolution whose samples are moved by offsets (y first) and scaled by `mask`."""
    batch, channels = x.shape[:2]
    filters, per_group, kh, kw = weight.shape
    height, width = offset.shape[2:]
    rows = []
    for b, f, i, j in itertools.product(range(batch), range(filters), range(height), range(width)):
        total = bias[f] if bias is not None else x.new_zeros(())
        for c in range(per_group):
            channel = (f // (filters // groups)) * per_group + c
            deform_group = channel // (channels // deform_groups)
            for p in range(kh):
                for q in range(kw):
                    n = deform_group * kh * kw + p * kw + q
                    y = i * stride[0] - padding[0] + p * dilation[0] + offset[b, 2 * n, i, j]
                    z = j * stride[1] - padding[1] + q * dilation[1] + offset[b, 2 * n + 1, i, j]
                    sample = bilinear(x[b, channel], y, z) * weight[f, c, p, q]
                    total = total + (sample if mask is None else sample * mask[b, n, i, j])
        rows.append(total)
    return torch.stack(rows).view(batch, filters, height, width)


def conv_case(deform_groups, kernel=(3, 2), channels=4, groups=1, out=(3, 2)):
    generator = torch.Generator().manual_seed(deform_groups + 10 * groups)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    n = deform_groups * kernel[0] * kernel[1]
    return dict(
        x=randn(2, channels, 5, 4),
        offset=randn(2, 2 * n, *out),
        mask=randn(2, n, *out),
        weight=randn(2, channels // groups, *kernel),
        bias=randn(2),
    )


# 5x4 pixels, kernel 3x2, stride (2, 1), padding (1, 0), dilation (1, 2): 3x2 outputs
GEOMETRY = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2))


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad(output, inputs, weights.to(output.dtype))


@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deformable_convolution_equals_the_loops(groups, deform_groups, with_bias):
    case = conv_case(deform_groups, groups=groups)
    if not with_bias:
        case['bias'] = None
    order = ('x', 'offset', 'mask', 'weight', 'bias')
    inputs = [case[name] for name in order if case[name] is not None]
    output = ops.modulated_deform_conv2d(
        *(case[n] for n in order), *GEOMETRY.values(), groups, deform_groups
    )
    expected = naive_deform_conv(**case, **GEOMETRY, groups=groups, deform_groups=deform_groups)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 2)])
def test_deformable_convolution_equals_the_loops(groups, deform_groups):
    case = conv_case(deform_groups, groups=groups)
    case['mask'] = case['bias'] = None
    inputs = [case['x'], case['offset'], case['weight']]
    output = ops.deform_conv2d(*inputs, *GEOMETRY.values(), groups, deform_groups)
    expected = naive_deform_conv(**case, **GEOMETRY, groups=groups, deform_groups=deform_groups)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(gradients(output, inputs), gradients(expected, inputs)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_convolutions_take_half_precision(dtype):
    case = {name: t.detach().to(dtype).requires_grad_() for name, t in conv_case(1).items()}
    for names, convolve in (
        (('x', 'offset', 'weight'), ops.deform_conv2d),
        (('x', 'offset', 'mask', 'weight', 'bias'), ops.modulated_deform_conv2d),
    ):
        half = [case[name] for name in names]
        exact = [t.detach().float().requires_grad_() for t in half]
        output, reference = (convolve(*t, *GEOMETRY.values()) for t in (half, exact))
        assert torch.equal(output, reference.to(dtype))
        for ours, theirs in zip(gradients(output, half), gradients(reference, exact)):
            assert ours.dtype == dtype
            # The output gradient was rounded, too.
            torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.05)


def naive_deform_attn(value, shapes, locations, weights):
    batch, _, heads, depth = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    rows = []
    for b, q, h, d in itertools.product(range(batch), range(queries), range(heads), range(depth)):
        total, start = value.new_zeros(()), 0
        for level, (height, width) in enumerate(shapes):
            plane = value[b, start : start + height * width, h, d].view(height, width)
            start += height * width
            for p in range(points):
                x, y = locations[b, q, h, level, p]
                sample = bilinear(plane, y * height - 0.5, x * width - 0.5)
                total = total + sample * weights[b, q, h, level, p]
        rows.append(total)
    return torch.stack(rows).view(batch, queries, heads * depth)


def attn_case(dtype=torch.float64):
    shapes = [(3, 5), (2, 1)]
    sizes = [h * w for h, w in shapes]
    value = torch.randn(2, sum(sizes), 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64)
    starts = torch.tensor([0, sizes[0]])
    tensors = [t.to(dtype).requires_grad_() for t in (value, locations, weights)]
    return shapes, starts, tensors


def attend(shapes, starts, tensors):
    value, locations, weights = tensors
    function = deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, torch.tensor(shapes), starts, locations, weights, 64)


def test_deformable_attention_equals_the_loops():
    shapes, starts, tensors = attn_case()
    output = attend(shapes, starts, tensors)
    expected = naive_deform_attn(tensors[0], shapes, *tensors[1:])
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(gradients(output, tensors), gradients(expected, tensors)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_deformable_attention_takes_half_precision():
    shapes, starts, half = attn_case(torch.float16)
    exact = [t.detach().float().requires_grad_() for t in half]
    output, reference = attend(shapes, starts, half), attend(shapes, starts, exact)
    assert torch.equal(output, reference.half())
    for ours, theirs in zip(gradients(output, half), gradients(reference, exact)):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours.float(), theirs, rtol=0.01, atol=0.01)


@pytest.mark.parametrize('modulated', [True, False])
def test_samples_one_cell_outside_of_the_map_do_not_move(modulated):
    """With offsets of 0, as a new layer has, the first taps of a padded convolution lie there."""
    x, weight = torch.rand(1, 2, 4, 5), torch.rand(3, 2, 3, 3)
    offset = torch.zeros(1, 18, 4, 5, requires_grad=True)
    if modulated:
        output = ops.modulated_deform_conv2d(
            x, offset, torch.ones(1, 9, 4, 5), weight, None, 1, 1, 1, 1, 1
        )
    else:
        output = ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1)
    output.sum().backward()
    moves = offset.grad.view(3, 3, 2, 4, 5).abs().amax(2)
    outside = torch.zeros(3, 3, 4, 5, dtype=torch.bool)
    outside[0, :, 0], outside[2, :, -1], outside[:, 0, :, 0], outside[:, 2, :, -1] = (True,) * 4
    assert not moves[outside].any() and moves[~outside].all()


def test_offsets_of_a_larger_map_are_read_as_if_they_were_of_the_output():
    """mmcv's kernels do so for each image, and DyHead relies on it."""
    x, weight = torch.rand(2, 2, 4, 5), torch.rand(3, 2, 3, 3)
    offset = torch.rand(2, 18, 8, 10, requires_grad=True)
    mask = torch.rand(2, 9, 8, 10, requires_grad=True)
    options = (weight, None, 1, 1, 1, 1, 1)
    output = ops.modulated_deform_conv2d(x, offset, mask, *options)
    parts = [
        tensor.detach().reshape(2, -1)[:, : n * 20].reshape(2, n, 4, 5).requires_grad_()
        for tensor, n in ((offset, 18), (mask, 9))
    ]
    expected = ops.modulated_deform_conv2d(x, *parts, *options)
    assert torch.equal(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for whole, part in zip((offset, mask), parts):
        assert torch.equal(whole.grad.flatten(1)[:, : part[0].numel()], part.grad.flatten(1))
        assert not whole.grad.flatten(1)[:, part[0].numel() :].any()


def test_gradients_of_a_graph_that_is_used_again():
    case = conv_case(deform_groups=1)
    inputs = [case[name] for name in ('x', 'offset', 'weight')]
    geometry = dict(zip(('stride', 'padding', 'dilation'), GEOMETRY.values()))
    output = ops.deform_conv2d(*inputs, **geometry)
    first, second = torch.randn_like(output), torch.randn_like(output)
    expected = [
        torch.autograd.grad(ops.deform_conv2d(*inputs, **geometry), inputs, upstream)
        for upstream in (first, second)
    ]
    for upstream, grads in zip((first, second), expected):
        # Some gradients only: those of the next call must not be of this one.
        torch.autograd.grad(output, inputs[:2], upstream, retain_graph=True)
        found = torch.autograd.grad(output, inputs, upstream, retain_graph=True)
        torch.testing.assert_close(found, grads)
    (weight,) = torch.autograd.grad(output, inputs[2:], first, retain_graph=True)
    torch.testing.assert_close(weight, expected[0][2])


def test_gradients_of_the_weight_alone():
    case = conv_case(deform_groups=1)
    x, offset, weight = (case[name] for name in ('x', 'offset', 'weight'))
    upstream = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    geometry = [GEOMETRY[key] for key in ('stride', 'padding', 'dilation')]
    every = ops.deform_conv2d(x, offset, weight, *geometry)
    alone = ops.deform_conv2d(x.detach(), offset.detach(), weight, *geometry)
    (expected,), (found,) = (
        torch.autograd.grad(output, [weight], upstream) for output in (every, alone)
    )
    torch.testing.assert_close(found, expected)
