"""Test blocks, stages, patches, stochastic depth and output norms."""

import pytest
import torch
from torch import nn

from swinv2_mm.models.layers import (
    DropPath,
    PatchEmbed,
    PatchMerging,
    SwinStage,
    apply_output_norm,
    build_output_norm,
)
from swinv2_mm.models.layers.block import MLP


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    kept = per_sample[:, 0] != 0
    torch.testing.assert_close(per_sample[kept], torch.full((int(kept.sum()), 6), 1 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.03
    x = torch.randn(3, 4)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (9, 14), (1, 3)])
def test_patch_embedding_pads_the_last_patch_with_zeros(height, width):
    embed = PatchEmbed(3, 8, patch_size=4)
    image = torch.randn(2, 3, height, width)
    padded = torch.zeros(2, 3, -(-height // 4) * 4, -(-width // 4) * 4)
    padded[:, :, :height, :width] = image
    assert embed(image).shape == (2, -(-height // 4), -(-width // 4), 8)
    assert torch.equal(embed(image), embed(padded))


def test_patch_merging_takes_the_four_neighbours_in_the_official_order():
    merge = PatchMerging(1)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    torch.testing.assert_close(
        merge.reduction(torch.tensor([1.0, 3.0, 2.0, 4.0]))[None, None, None], merge_input(merge, x)
    )


def merge_input(merge, x):
    """Return the result of the reduction before the norm."""
    seen = []
    hook = merge.reduction.register_forward_hook(lambda module, args, out: seen.append(out))
    merge(x)
    hook.remove()
    return seen[0]


def test_checkpointing_changes_nothing_but_memory(randomize):
    options = dict(num_heads=2, window_size=(3, 3))
    plain = randomize(SwinStage(8, 2, [0.0, 0.0], downsample=False, **options))
    thrifty = SwinStage(8, 2, [0.0, 0.0], downsample=False, with_cp=True, **options)
    thrifty.load_state_dict(plain.state_dict())
    grads = []
    for stage in (plain, thrifty):
        x = torch.ones(1, 5, 4, 8).cumsum(1).requires_grad_()
        out = stage(x)
        out.square().sum().backward()
        grads.append((out.detach(), x.grad, *(item.grad for item in stage.parameters())))
    assert len(grads[0]) > 10
    for mine, theirs in zip(*grads):
        assert torch.equal(mine, theirs)


def test_checkpointing_stores_less():
    def saved_bytes(with_cp):
        stage = SwinStage(16, 2, [0.0] * 2, False, with_cp=with_cp, num_heads=2, window_size=(4, 4))
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            stage(torch.randn(1, 16, 16, 16, requires_grad=True))
        return total

    assert saved_bytes(True) < 0.2 * saved_bytes(False)


@pytest.mark.parametrize(
    'norm_cfg',
    [dict(type='LN'), dict(type='BN', momentum=0.2), dict(type='GN', num_groups=2), None],
)
def test_output_norms(norm_cfg):
    norm = None if norm_cfg is None else build_output_norm(norm_cfg, 4)
    x = torch.randn(2, 5, 6, 4)
    out = apply_output_norm(norm, x)
    assert out.shape == (2, 4, 5, 6)
    assert out.is_contiguous()
    if norm_cfg is None:
        assert torch.equal(out, x.permute(0, 3, 1, 2))
    else:
        axes = {'LN': 1, 'BN': (0, 2, 3), 'GN': None}[norm_cfg['type']]
        mean = out.unflatten(1, (2, 2)).mean((2, 3, 4)) if axes is None else out.mean(axes)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)


def test_output_norm_can_be_frozen_and_unknown_types_are_refused():
    norm = build_output_norm(dict(type='BN', requires_grad=False), 4)
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    with pytest.raises(ValueError, match=r"type 'Instance'.*LN, BN"):
        build_output_norm(dict(type='Instance'), 4)


@pytest.mark.parametrize(
    'change',
    [
        lambda mlp: setattr(mlp, 'act', nn.ReLU()),
        lambda mlp: setattr(mlp, 'act', nn.GELU('tanh')),
        lambda mlp: setattr(mlp, 'drop1', nn.Tanh()),
        lambda mlp: setattr(mlp, 'drop2', nn.Tanh()),
        lambda mlp: mlp.append(nn.Tanh()),
        lambda mlp: mlp.act.register_forward_pre_hook(lambda _, given: (2 * given[0],)),
        lambda mlp: mlp.drop1.register_forward_hook(lambda _, given, out: 2 * out),
        lambda mlp: setattr(mlp.fc1, 'forward', lambda x: x.repeat_interleave(4, -1)),
    ],
)
def test_inference_uses_what_stands_in_an_mlp(randomize, change):
    mlp = randomize(MLP(8, 32)).eval()
    change(mlp)
    x = torch.randn(3, 8)
    with torch.no_grad():
        mine = mlp(x)
    torch.testing.assert_close(mine, mlp(x).detach(), rtol=1e-5, atol=1e-6)
