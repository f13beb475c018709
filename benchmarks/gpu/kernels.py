"""Part `kernels`: the window attention alone, compared with implementations in torch.

All contestants map queries, keys and values to outputs, including shifted windows and their mask. FlexAttention and
SDPA are compiled as a whole, so that torch can fuse window copies and norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import MODES, SIZES, Case
from benchmarks.contestants import Contestant, products
from benchmarks.gpu.part import PartOptions
from benchmarks.results import Results
from benchmarks.rounds import Contest, Entry
from benchmarks.task import DTYPES, Task
from swinv2_mm.ops.window_attention import WindowPartition, window_attention
from swinv2_mm.ops.window_attention.reference import expand_bias, normalize

# A function of `qkv (B, H, W, 3 * nH * D)`, `scale (nH, 1, 1)` and `table (nH, 2 * Wh - 1, 2 * Ww - 1)`.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

_MINIMUM_SECONDS = 12  # time limit of a case


def run(options: PartOptions, results: Results) -> None:
    """Measure all cases, half precision first."""
    machine = products('mm', 'copy', side=256 if options.quick else None)
    with options.pool() as pool:
        for case in _cases(options):
            if options.left < (1 if options.quick else _MINIMUM_SECONDS / 2):
                results.fail(str(case), 'no time was left')
                continue
            torch.compiler.reset()
            entries = [Entry(one, case) for one in (*_contestants(case, options), *machine)]
            contest = Contest(pool, entries, results, {}, 0.0 if options.quick else 20.0)
            contest.prepare()
            contest.measure([case], 2 if options.quick else 5)
            work = _work(case)
            row = contest.row(case, work)
            if row is not None:
                results.add(row | _described(case, row, work))
            pool.release()


def _cases(options: PartOptions) -> list[Case]:
    common: dict[str, Any] = {'device': options.device, 'task': 'attention'}
    if options.quick:
        return [Case((8, 8), 4, mode, 'nano', 1, 'bf16', **common) for mode in MODES]
    # The first stage of SwinV2-T for images of 512 x 512, and a map of similar size that 24 divides.
    sides = {8: (128, 16), 16: (128, 16), 24: (144, 12)}
    return [
        Case((side, side), window, mode, 'tiny', batch, dtype, **common)
        for dtype in ('bf16', 'fp16', 'fp32')
        for window, (side, batch) in sides.items()
        for mode in MODES
    ]


def _contestants(case: Case, options: PartOptions) -> list[Contestant]:
    names = ['ours', 'flex', 'sdpa', 'reference']
    if case.mode == 'train' and not options.is_cuda:
        names.remove('flex')  # no backward pass there
    # On a CPU torch.compile would need a C++ compiler.
    compiled = ('flex', 'sdpa') if options.is_cuda else ()
    return [
        Contestant(
            name, 'benchmarks.gpu.kernels:build', None, {'by': name, 'compile': name in compiled}
        )
        for name in names
    ]


def build(case: Case, options: Mapping[str, Any]) -> Task:
    """Build the forward pass, in `'train'` mode with the backward pass."""
    dtype, device = DTYPES[case.dtype], case.device
    heads, width, sides = _shape(case)
    qkv = torch.randn(case.batch, *case.input, 3 * width, device=device).to(dtype)
    grad = torch.randn(case.batch, *case.input, width, device=device).to(dtype)
    scale = 10 + torch.rand(heads, 1, 1, device=device)
    inputs = [qkv, scale, 16 * torch.rand(heads, sides, sides, device=device)]
    window = (case.window, case.window)
    partition = WindowPartition.fit(case.input, window, (case.window // 2, case.window // 2))
    attention = _attention(options['by'], partition, device)
    if options['compile']:
        attention = torch.compile(attention, dynamic=False)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [attention(*inputs)]

    leaves = [x.detach().requires_grad_() for x in inputs]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*leaves), leaves, grad)

    return Task(both if case.mode == 'train' else forward, device, forward)


def _shape(case: Case) -> tuple[int, int, int]:
    """Return heads and channels of the first stage, and the side of the position bias table."""
    size = SIZES[case.arch]
    return size.num_heads[0], size.embed_dims, 2 * case.window - 1


def _work(case: Case) -> dict[str, float]:
    """Return the minimum GB to move and Gflop to compute in a call."""
    numbers = case.batch * math.prod(case.input) * _shape(case)[1]
    maps, scores = 4, 2  # three in, one out; scores, and products with values
    if case.mode == 'train':
        maps, scores = (
            maps + 7,
            scores + 5,
        )  # four in, three out; scores are recomputed
    size = torch.finfo(DTYPES[case.dtype]).bits // 8
    return {
        'gb': maps * numbers * size / 1e9,
        'gflops': scores * 2 * numbers * case.window**2 / 1e9,
    }


def _described(case: Case, row: Mapping[str, Any], work: Mapping[str, float]) -> dict[str, Any]:
    """Return a row with derived values."""
    heads, width, _ = _shape(case)
    found: dict[str, Any] = {
        'op': 'forward + backward' if case.mode == 'train' else 'forward',
        'map': case.size,
        'heads': heads,
        'head_dim': width // heads,
    }
    rates = {'bytes': ('copy', 'gb'), 'operations': ('mm', 'gflops')}
    if all(f'{name}_{unit}_per_s' in row for name, unit in rates.values()):
        floors = {
            bound: 1000 * work[unit] / row[f'{name}_{unit}_per_s']
            for bound, (name, unit) in rates.items()
        }
        bound = max(floors, key=lambda name: floors[name])
        found |= {'bound': bound, 'floor_ms': floors[bound]}
        found['share_of_floor'] = floors[bound] / row['ms']['ours']
    return found


def _attention(name: str, partition: WindowPartition, device: str) -> Attention:
    if name in ('flex', 'sdpa'):
        by, labels = _by_flex_attention if name == 'flex' else _by_sdpa, partition.regions(device)
        return lambda qkv, scale, table: by(qkv, scale, table, partition, labels)
    backend = 'triton' if name == 'ours' else name
    return lambda qkv, scale, table: window_attention(qkv, scale, table, partition, backend=backend)


def _by_flex_attention(
    qkv: Tensor, scale: Tensor, table: Tensor, partition: WindowPartition, labels: Tensor | None
) -> Tensor:
    """Return an attention with `flex_attention`; bias and mask are score modifications."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = _cut(qkv, scale, table, partition)
    bias = expand_bias(table)

    def modify(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        score = score + bias[h, q_idx, k_idx]
        if labels is None:
            return score
        window = b % len(labels)
        return torch.where(labels[window, q_idx] == labels[window, k_idx], score, -math.inf)

    out = flex_attention(q, k, v, score_mod=modify, scale=1.0)
    return partition.join(out.transpose(1, 2).flatten(2))


def _by_sdpa(
    qkv: Tensor, scale: Tensor, table: Tensor, partition: WindowPartition, labels: Tensor | None
) -> Tensor:
    """Return an attention with `scaled_dot_product_attention`; bias and mask are one additive mask per window."""
    q, k, v = _cut(qkv, scale, table, partition)
    mask = expand_bias(table)[None]
    if labels is not None:
        apart = labels[:, :, None] != labels[:, None, :]
        mask = mask.masked_fill(apart[:, None], -math.inf)
    mask = mask.to(q.dtype).expand(len(q) // len(mask), *mask.shape).flatten(0, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return partition.join(out.transpose(1, 2).flatten(2))


def _cut(
    qkv: Tensor, scale: Tensor, table: Tensor, partition: WindowPartition
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled queries, keys and values of all windows, `(B * nW, nH, N, D)` each."""
    windows = partition.split(qkv).unflatten(-1, (3, len(table), -1))
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    return (normalize(q) * scale).to(v.dtype), normalize(k).to(v.dtype), v
