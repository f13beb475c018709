"""Test options of ChristophReich1996/Swin-Transformer-V2: memory settings and new resolutions."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_mm import SwinTransformerV2, SwinTransformerV2CR
from swinv2_mm.checkpoints import load_pretrained
from swinv2_mm.ops.window_attention import WindowPartition, window_attention

NANO = dict(embed_dims=8, depths=[1, 2, 1], num_heads=[1, 2, 4])
BOTH = pytest.mark.parametrize('backbone', [SwinTransformerV2, SwinTransformerV2CR])


def nano(backbone=SwinTransformerV2, **options):
    return backbone(NANO, **{'window_size': 4, 'out_indices': (0, 1, 2), **options})


def run(model, image):
    """Return the maps and the gradients of all parameters."""
    model.zero_grad()
    maps = model(image)
    sum(item.square().mean() for item in maps).backward()
    return [*(item.detach() for item in maps), *(p.grad.clone() for p in model.parameters())]


# ---------------------------------------------------------------- sequential self-attention


@BOTH
@pytest.mark.parametrize('size', [(64, 64), (53, 90)])
def test_sequential_attention_equals_the_parallel_one(backbone, size, randomize):
    image = torch.randn(2, 3, *size)
    options = dict(drop_path_rate=0.0)
    parallel = randomize(nano(backbone, **options))
    sequential = nano(backbone, sequential_self_attention=True, **options)
    sequential.load_state_dict(parallel.state_dict())
    assert all(block.attn.sequential for layer in sequential.layers for block in layer.blocks)
    results = list(
        zip(run(sequential.double(), image.double()), run(parallel.double(), image.double()))
    )
    assert len(results) > 40
    for mine, theirs in results:
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(sequential.float()(image), parallel.float()(image)):
        assert (mine - theirs).abs().max() < 1e-6 * theirs.abs().max()


class LargestScores(TorchDispatchMode):
    """Record the size of the largest tensor of scores, `(..., N, N)`, over all operators."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(item, torch.Tensor) and item.shape[-2:] == (self.tokens, self.tokens):
                self.largest = max(self.largest, item.numel())
        return out


@pytest.mark.parametrize('sequential', [False, True])
def test_sequential_attention_holds_the_scores_of_one_window(sequential):
    qkv = torch.randn(2, 24, 24, 3 * 8, requires_grad=True)
    partition = WindowPartition.fit((24, 24), (6, 6), (0, 0))
    with LargestScores(36) as scores:
        out = window_attention(
            qkv, torch.ones(2, 1, 1), torch.zeros(2, 11, 11), partition, sequential=sequential
        )
        out.sum().backward()
    one_window = 2 * 36 * 36
    assert scores.largest == one_window * (1 if sequential else 2 * 16)


@pytest.mark.parametrize(
    'options', [dict(attn_drop_rate=0.1), dict(attn_backend='reference')], ids=str
)
def test_sequential_attention_refuses_what_keeps_all_scores(options):
    with pytest.raises(
        ValueError, match=r'sequential_self_attention=True with .* needs attn_drop_rate=0'
    ):
        nano(sequential_self_attention=True, **options)
    arguments = torch.randn(1, 8, 8, 24), torch.ones(2, 1, 1), torch.zeros(2, 7, 7)
    partition = WindowPartition.fit((8, 8), (4, 4), (0, 0))
    with pytest.raises(ValueError, match=r"needs the backend 'fused' or 'llvm'"):
        window_attention(*arguments, partition, backend='reference', sequential=True)


# ---------------------------------------------------------------- checkpointing


def test_use_checkpoint_is_with_cp():
    for options, expected in (
        ({}, False),
        (dict(use_checkpoint=True), True),
        (dict(with_cp=True), True),
        (dict(with_cp=True, use_checkpoint=True), True),
        (dict(with_cp=False, use_checkpoint=False), False),
    ):
        assert [layer.with_cp for layer in nano(**options).layers] == [expected] * 3
    for choice in (True, False):
        with pytest.raises(ValueError, match='they are two names of one option'):
            nano(with_cp=choice, use_checkpoint=not choice)


# ---------------------------------------------------------------- other resolutions


@BOTH
def test_a_new_window_is_that_of_a_model_built_with_it(backbone, randomize):
    model = randomize(nano(backbone)).eval()
    model.update_resolution(new_window_size=[6, (3, 7), 5], new_input_resolution=(48, 80))
    unit = {} if backbone is SwinTransformerV2CR else dict(pretrained_window_sizes=4)
    built = nano(backbone, window_size=[6, (3, 7), 5], **unit).eval()
    built.load_state_dict(model.state_dict(), strict=True)
    assert model.window_sizes == built.window_sizes == ((6, 6), (3, 7), (5, 5))
    assert model.input_resolution == (48, 80)
    for size in ((48, 80), (33, 50)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            for mine, theirs in zip(model(image), built(image)):
                assert torch.equal(mine, theirs)


@BOTH
def test_there_and_back_changes_nothing(backbone, randomize):
    model = randomize(nano(backbone)).eval()
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        before = model(image)
        model.update_resolution(7)
        between = model(image)
        model.update_resolution(4)
        after = model(image)
    for first, second, third in zip(before, between, after):
        assert torch.equal(first, third)
        assert not torch.allclose(first, second)


@BOTH
def test_a_training_goes_on(backbone, randomize):
    model = randomize(nano(backbone, frozen_stages=1, drop_path_rate=0.0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    image = torch.randn(1, 3, 64, 64)

    def step():
        optimizer.zero_grad()
        sum(item.square().mean() for item in model(image)).backward()
        optimizer.step()

    model.train()
    step()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(optimizer.state_dict())
    identities = [id(parameter) for parameter in model.parameters()]
    values = [parameter.detach().clone() for parameter in model.parameters()]
    model.update_resolution(8, (64, 64))
    assert [id(parameter) for parameter in model.parameters()] == identities
    for parameter, value in zip(model.parameters(), values):
        assert torch.equal(parameter, value)
    assert [module.training for module in model.modules()] == modes
    assert not all(modes) and any(modes)
    assert optimizer.state_dict()['param_groups'] == state['param_groups']
    step()
    assert all(entry['step'] == 2 for entry in optimizer.state.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert not any(p.requires_grad for p in model.layers[0].parameters())


def test_the_unit_of_the_bias_stays_that_of_the_weights(tmp_path, randomize):
    model = randomize(nano())
    torch.save(model.state_dict(), tmp_path / 'at_4.pth')
    model.update_resolution(8)
    assert model.state_dict()['pretrained_window_sizes'].tolist() == [[4, 4]] * 3
    again = nano(window_size=8)
    load_pretrained(again, tmp_path / 'at_4.pth')
    image = torch.randn(1, 3, 90, 70)
    with torch.no_grad():
        for mine, theirs in zip(model.eval()(image), again.eval()(image)):
            assert torch.equal(mine, theirs)
    # Weights that are loaded later set their training window, or the one that 0 stood for before.
    stated = nano(pretrained_window_sizes=0)
    stated.update_resolution(8)
    load_pretrained(stated, tmp_path / 'at_4.pth')
    assert stated.pretrained_window_sizes == ((4, 4),) * 3


@BOTH
def test_a_model_without_values_can_be_updated_too(backbone):
    with torch.device('meta'):
        model = nano(backbone)
    model.update_resolution(6)
    model.to_empty(device='cpu')
    model.init_weights()
    assert all(item.isfinite().all() for item in model(torch.randn(1, 3, 40, 40)))
    for layer in model.layers:
        assert layer.blocks[0].attn.position_mlp.coords.shape == (11, 11, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@BOTH
def test_on_a_gpu(backbone, randomize):
    model = randomize(nano(backbone, use_deformable_block=True)).cuda().eval()
    model.update_resolution(6)
    assert {item.device.type for item in (*model.parameters(), *model.buffers())} == {'cuda'}
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        on_gpu = model(image.cuda())
        for mine, theirs in zip(on_gpu, model.cpu()(image)):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ((0,), ValueError, 'new_window_size is 0: expected numbers >= 1'),
        (('8',), TypeError, "new_window_size is '8'"),
        (([8, 8, 8, 8],), ValueError, r'4 entries: expected .* for each of the 3 stages'),
        ((8, (0, 4)), ValueError, r'new_input_resolution is \(0, 4\): expected numbers >= 1'),
        ((8, '512'), TypeError, "new_input_resolution has the entry '512': expected a pair"),
    ],
)
def test_wrong_resolutions_are_plain_errors_and_change_nothing(arguments, error, message):
    model = nano()
    with pytest.raises(error, match=message):
        model.update_resolution(*arguments)
    assert model.window_sizes == ((4, 4),) * 3
    assert all(block.window_size == (4, 4) for layer in model.layers for block in layer.blocks)
