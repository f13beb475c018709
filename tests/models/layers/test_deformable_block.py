"""Test offsets, gradients and initialisation of deformable blocks."""

import numpy as np
import pytest
import torch
from torch import nn

from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.checkpoints import CheckpointError, load_pretrained
from swinv2_mm.models import draw_offsets, last_offsets
from swinv2_mm.models.layers import DeformableSwinBlock, SwinBlock
from swinv2_mm.models.layers.deformable_block import MAX_OFFSET, resample

NANO = dict(embed_dims=8, depths=[1, 2, 1], num_heads=[1, 2, 4])
BOTH = pytest.mark.parametrize('backbone', [SwinTransformerV2, SwinTransformerV2CR])


def nano(backbone=SwinTransformerV2, **options):
    return backbone(NANO, **{'window_size': 4, 'out_indices': (0, 1, 2), **options})


def deformable_blocks(model):
    return {
        name: block
        for name, block in model.named_modules()
        if isinstance(block, DeformableSwinBlock)
    }


def give_offsets(model, std=0.3):
    """Set offsets of about one token, as in a trained model."""
    for block in deformable_blocks(model).values():
        nn.init.normal_(block.offset_network[2].weight, std=std)


def read_at(x, col, row):
    """Sample a map `(C, H, W)` bilinearly at a point, with border padding."""
    total = 0
    for r in (int(np.floor(row)), int(np.floor(row)) + 1):
        for c in (int(np.floor(col)), int(np.floor(col)) + 1):
            weight = (1 - abs(row - r)) * (1 - abs(col - c))
            total = (
                total
                + weight * x[:, min(max(r, 0), x.shape[1] - 1), min(max(c, 0), x.shape[2] - 1)]
            )
    return total


@pytest.mark.parametrize(('height', 'width'), [(5, 7), (1, 4), (1, 1)])
def test_resampling_reads_each_head_where_its_offset_points(height, width):
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    offsets = 3 * torch.randn(2, 3, height, width, 2, dtype=torch.float64)
    out = resample(x, offsets)
    for image in range(2):
        for head in range(3):
            channels = slice(2 * head, 2 * head + 2)
            values = x[image, ..., channels].permute(2, 0, 1)
            for row in range(height):
                for col in range(width):
                    right, down = offsets[image, head, row, col].tolist()
                    expected = read_at(values, col + right, row + down)
                    torch.testing.assert_close(out[image, row, col, channels], expected)


@BOTH
def test_only_the_first_stage_is_plain(backbone):
    model = nano(backbone, use_deformable_block=True)
    kinds = [[type(block) for block in layer.blocks] for layer in model.layers]
    assert kinds == [[SwinBlock], [DeformableSwinBlock] * 2, [DeformableSwinBlock]]
    for block in deformable_blocks(model).values():
        assert block.offset_network[2].bias is None


@BOTH
def test_starts_as_the_plain_backbone(backbone, randomize):
    model, plain = nano(backbone, use_deformable_block=True), nano(backbone)
    assert all(
        block.offset_network[2].weight.eq(0).all() for block in deformable_blocks(model).values()
    )
    randomize(plain)
    lacking = model.load_state_dict(plain.state_dict(), strict=False)
    assert lacking.unexpected_keys == []
    assert lacking.missing_keys and all('offset_network' in key for key in lacking.missing_keys)
    for size in ((64, 64), (61, 90), (240, 250)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            for mine, theirs in zip(model.eval()(image), plain.eval()(image)):
                # `grid_sample` rounds coordinates, so results are not bit-equal.
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            exact = model.double()(image.double()), plain.double()(image.double())
        for mine, theirs in zip(*exact):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
        model.float(), plain.float()


@BOTH
@pytest.mark.parametrize('size', [(240, 250), (512, 640), (5, 3)])
def test_any_size(backbone, size):
    model = nano(backbone, use_deformable_block=True)
    give_offsets(model)
    maps = model(torch.randn(1, 3, *size))
    assert [tuple(item.shape[2:]) for item in maps] == [
        (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16)
    ]
    sum(item.square().mean() for item in maps).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences(randomize):
    """Includes gradients of offsets; off the grid, since bilinear sampling is not differentiable at tokens."""
    block = randomize(DeformableSwinBlock(4, 2, (3, 3), shifted=True, backend='reference')).double()
    nn.init.normal_(block.offset_network[2].weight, std=0.5)
    x = torch.randn(1, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    names = ['offset_network.0.weight', 'offset_network.0.bias', 'offset_network.2.weight']
    names += ['attn.qkv.weight', 'norm1.weight']
    start = [block.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *start), eps=1e-7, atol=1e-6)
    moved = block.compute_offsets(x)
    assert moved.std() > 0.1
    near = (moved - moved.round()).abs().min()
    assert near > 1e-5


def test_offsets_learn_from_the_first_step_on(randomize):
    model = randomize(nano(use_deformable_block=True))
    for block in deformable_blocks(model).values():
        block.reset_offsets()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    image = torch.randn(2, 3, 64, 48)
    for _ in range(2):
        optimizer.zero_grad()
        sum(item.square().mean() for item in model(image)).backward()
        optimizer.step()
    assert len(deformable_blocks(model)) == 3
    for block in deformable_blocks(model).values():
        assert block.offset_network[2].weight.abs().max() > 0
        assert block.offset_network[0].weight.grad.abs().max() > 0


def test_the_residual_is_not_resampled(randomize):
    block = randomize(DeformableSwinBlock(8, 2, (4, 4))).eval()
    nn.init.normal_(block.offset_network[2].weight, std=1.0)
    SwinBlock.reset_branches(block)
    x = torch.randn(1, 9, 10, 8)
    assert torch.equal(block(x), x)
    assert block.offsets.abs().max() > 0.1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_reads_the_same_tokens(dtype, randomize):
    block = randomize(DeformableSwinBlock(8, 2, (4, 4))).eval()
    block.reset_offsets()
    x = torch.randn(1, 6, 200, 8)
    with torch.autocast('cpu', dtype):
        assert block.compute_offsets(x).dtype == torch.float32
        torch.testing.assert_close(block.attention_input(x), x, rtol=1e-4, atol=1e-4)


def test_checkpointing_and_sequential_attention_go_along(randomize):
    image = torch.randn(1, 3, 40, 30)
    results = []
    for options in ({}, dict(use_checkpoint=True, sequential_self_attention=True)):
        model = randomize(nano(use_deformable_block=True, drop_path_rate=0.0, **options))
        out = model(image)
        sum(item.square().mean() for item in out).backward()
        results.append([*out, *(parameter.grad for parameter in model.parameters())])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_plain_weights_load_and_offsets_stay_at_zero(tmp_path, randomize):
    plain = randomize(nano(norm_cfg=None))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = nano(use_deformable_block=True)
    report = load_pretrained(model, tmp_path / 'plain.pth')
    assert len([name for name in report.fresh if 'offset_network' in name]) == 3 * 3
    assert not report.missing
    for block in deformable_blocks(model).values():
        assert block.offset_network[2].weight.eq(0).all()
    give_offsets(model)
    torch.save(model.state_dict(), tmp_path / 'deformable.pth')
    again = nano(use_deformable_block=True)
    load_pretrained(again, tmp_path / 'deformable.pth')
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(CheckpointError, match='offset_network'):
        load_pretrained(plain, tmp_path / 'deformable.pth')


def test_offsets_are_there_to_be_drawn():
    model = nano(use_deformable_block=True).eval()
    with pytest.raises(ValueError, match='run an image through the model first'):
        last_offsets(model)
    give_offsets(model, std=3.0)
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
    offsets = last_offsets(model)
    assert [tuple(item.shape) for item in offsets.values()] == [
        (2, 2, 8, 12, 2),
        (2, 2, 8, 12, 2),
        (2, 4, 4, 6, 2),
    ]
    assert all(0.1 < item.abs().max() <= MAX_OFFSET for item in offsets.values())
    with pytest.raises(ValueError, match='use_deformable_block=True'):
        last_offsets(nano())


def test_arrows_point_where_the_offsets_do():
    image = np.zeros((64, 96, 3), np.uint8)
    offsets = torch.zeros(2, 8, 12, 2)
    still = draw_offsets(image, offsets)
    offsets[0, 4, 2] = torch.tensor([6.0, 0.0])  # from (20, 36) to (68, 36) in pixels
    drawn = draw_offsets(image, offsets, head=0, color='white').astype(int)
    assert drawn.shape == image.shape and draw_offsets(image, offsets).dtype == np.uint8
    changed = np.abs(drawn - still).sum(-1) > 300
    rows, cols = np.nonzero(changed)
    assert abs(rows.mean() - 35.5) < 1.5
    assert abs(cols.min() - 20) <= 2 and abs(cols.max() - 68) <= 2
    assert not (draw_offsets(image, offsets, head=1) != still).any()


@pytest.mark.parametrize(
    ('image', 'offsets', 'head', 'message'),
    [
        (np.zeros((8, 8)), torch.zeros(1, 2, 2, 2), None, r'expected an RGB image \(H, W, 3\)'),
        (np.zeros((8, 8, 3)), torch.zeros(1, 1, 2, 2, 2), None, r'choose one of the batch'),
        (np.zeros((8, 8, 3)), torch.zeros(3, 2, 2, 2), 3, r'head is 3: expected 0 to 2'),
    ],
)
def test_wrong_arguments_of_the_drawing_are_plain_errors(image, offsets, head, message):
    with pytest.raises(ValueError, match=message):
        draw_offsets(image, offsets, head)
