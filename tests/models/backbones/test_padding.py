"""Test that padding does not affect real tokens, gradients and half precision."""

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.layers import SwinStage

SIZES = [(41, 70), (33, 36), (65, 17), (100, 64)]


def model_of(windows, randomize, **options):
    arch = dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2])
    model = SwinTransformerV2(
        arch, window_size=windows, out_indices=(0, 1), drop_path_rate=0.0, **options
    )
    return randomize(model)


def spread(taint, stage, window):
    """Return the tokens that can depend on a tainted one after the blocks of a stage, by coordinates."""
    height, width = taint.shape
    for index in range(2):
        shift = [window // 2 if index == 1 and side > window else 0 for side in (height, width)]
        rows = (torch.arange(height) - shift[0]).div(window, rounding_mode='floor')
        cols = (torch.arange(width) - shift[1]).div(window, rounding_mode='floor')
        groups = rows[:, None] * 1000 + cols[None, :]
        taint = torch.isin(groups, groups[taint])
    return taint


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('canvas', [(8, 0), (3, 29), (64, 64)])
def test_a_larger_canvas_changes_nothing_that_the_windows_do_not_see(size, canvas, randomize):
    """Pad an image with zeros at the bottom and right, as a data preprocessor does."""
    window = 4
    model = model_of(window, randomize).eval()
    image = torch.randn(1, 3, *size)
    padded = torch.nn.functional.pad(image, (0, canvas[1], 0, canvas[0]))
    with torch.no_grad():
        small, large = model(image), model(padded)
    taint = None
    untouched = 0
    for stage, (alone, within) in enumerate(zip(small, large)):
        stride = 4 * 2**stage
        height, width = within.shape[2:]
        if taint is None:  # tokens of the canvas outside of the image
            taint = torch.zeros(height, width, dtype=torch.bool)
            taint[-(-size[0] // stride) :] = True
            taint[:, -(-size[1] // stride) :] = True
        else:
            odd = torch.nn.functional.pad(taint, (0, taint.shape[1] % 2, 0, taint.shape[0] % 2))
            taint = odd.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).any(3).any(1)
        taint = spread(taint, stage, window)
        seen = taint[: alone.shape[2], : alone.shape[3]]
        crop = within[..., : alone.shape[2], : alone.shape[3]]
        torch.testing.assert_close(alone[..., ~seen], crop[..., ~seen], rtol=1e-4, atol=1e-5)
        untouched += int((~seen).sum())
    assert untouched > 0


@pytest.mark.parametrize('size', [(5, 6), (9, 9), (12, 7), (4, 4)])
def test_gradients_do_not_cross_the_border_or_touch_padding(size, randomize):
    """The output of a token depends on the tokens of its windows only, also where the shift wraps around."""
    stage = randomize(
        SwinStage(8, 2, [0.0, 0.0], downsample=False, num_heads=2, window_size=(4, 4))
    )
    height, width = size
    shift = [2 if side > 4 else 0 for side in size]
    probed = 0
    for row in range(0, height, 2):
        for col in range(0, width, 3):
            x = torch.randn(1, height, width, 8, requires_grad=True)
            stage(x)[0, row, col].sum().backward()
            reached = x.grad[0].abs().sum(-1) > 0
            taint = torch.zeros(height, width, dtype=torch.bool)
            taint[row, col] = True
            for offset in (shift, (0, 0)):  # reversed: the shifted block is the second
                rows = (torch.arange(height) - offset[0]).div(4, rounding_mode='floor')
                cols = (torch.arange(width) - offset[1]).div(4, rounding_mode='floor')
                groups = rows[:, None] * 1000 + cols[None, :]
                taint = torch.isin(groups, groups[taint])
            assert torch.equal(reached, taint)
            probed += 1
    assert probed >= 4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['noise', 'black', 'half black'])
def test_autocast_stays_finite_at_loss_scale_65536(dtype, size, kind, randomize):
    """Other implementations return NaN for zero keys from padding or constant images."""
    model = model_of(8, randomize, patch_norm=False).train()
    torch.nn.init.zeros_(model.patch_embed.proj.bias)  # black pixels become zero tokens
    image = torch.randn(2, 3, *size) * (kind != 'black')
    if kind == 'half black':
        image[..., size[1] // 2 :] = 0
    with torch.autocast('cpu', dtype=dtype):
        maps = model(image)
        # Divided by 20, so that the true gradients times 65536 are in the range of fp16.
        loss = sum(item.float().square().mean() for item in maps) / 20
    assert all(item.isfinite().all() for item in maps)
    (loss * 65536).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert len(gradients) > 40
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (3, 2), (31, 33)])
def test_any_size_down_to_one_pixel(size):
    model = SwinTransformerV2(
        dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]), window_size=(3, 5)
    )
    maps = model(torch.randn(1, 3, *size))
    for stage, item in enumerate(maps):
        stride = 4 * 2**stage
        assert item.shape == (1, 8 * 2**stage, -(-size[0] // stride), -(-size[1] // stride))
        assert item.isfinite().all()
