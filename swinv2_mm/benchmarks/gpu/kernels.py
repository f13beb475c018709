"""Part `kernels`: the window attention alone, beside the same written with operators of torch.

Everybody gets the map of queries, keys and values and returns the map of outputs, shifted windows and their mask
included; FlexAttention and SDPA are compiled as a whole, so that copies into windows and norms are fused as well as
torch can.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.benchmarks.gpu.attentions import Attention, by_flex_attention, by_sdpa, ours
from swinv2_mm.benchmarks.gpu.part import PartOptions, Sink
from swinv2_mm.benchmarks.gpu.timing import interleaved, milliseconds
from swinv2_mm.benchmarks.summary import median, pairwise_ratio
from swinv2_mm.benchmarks.task import synchronize
from swinv2_mm.ops.window_attention import WindowPartition

_DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
_SIZE_OF = {'bf16': 2, 'fp16': 2, 'fp32': 4}
_MINIMUM_SECONDS = 12  # that a case may take


@dataclass(frozen=True)
class _Case:
    """A map of shifted windows.

    Attributes:
        dtype: A key of `_DTYPES`.
        window: Side of a window, in tokens.
        side: That of the map.
        batch: Number of maps.
        heads: Number of heads.
        head_dim: Channels of a head.
    """

    dtype: str
    window: int
    side: int
    batch: int
    heads: int = 3
    head_dim: int = 32

    def __str__(self) -> str:
        return f'{self.dtype} window {self.window}'

    @property
    def partition(self) -> WindowPartition:
        """The cut of the map."""
        shift = (self.window // 2, self.window // 2)
        return WindowPartition.fit((self.side, self.side), (self.window, self.window), shift)

    def least(self, trains: bool) -> tuple[float, float]:
        """The fewest bytes to move and operations to do, of the forward pass or with the backward pass."""
        numbers = self.batch * self.side**2 * self.heads * self.head_dim
        bytes_ = 4 * numbers * _SIZE_OF[self.dtype]  # three in, one out
        products = 2 * 2 * numbers * self.window**2
        if trains:
            bytes_ += 7 * numbers * _SIZE_OF[self.dtype]  # the three and a gradient in, three out
            products += 5 * 2 * numbers * self.window**2  # the scores are not kept
        return bytes_, products


def run(options: PartOptions, sink: Sink) -> None:
    """Measure all cases, half precision first."""
    ceilings = {name: _Ceilings(dtype, options) for name, dtype in _DTYPES.items()}
    for case in _cases(options):
        if options.left < (1 if options.quick else _MINIMUM_SECONDS):
            sink.fail(str(case), 'no time was left')
            continue
        for trains in (False, True):
            _measure(case, trains, ceilings[case.dtype], options, sink)


def _cases(options: PartOptions) -> list[_Case]:
    if options.quick:
        return [_Case(dtype, 4, 8, 1, heads=1, head_dim=16) for dtype in _DTYPES]
    # The first stage of SwinV2-T for images of 512 x 512, and a map of as many tokens that 24 divides.
    sides = {8: (128, 16), 16: (128, 16), 24: (144, 12)}
    return [_Case(dtype, window, *size) for dtype in _DTYPES for window, size in sides.items()]


class _Ceilings:
    """What the device can do in a dtype: bytes per second copied, and operations per second of a large product."""

    def __init__(self, dtype: torch.dtype, options: PartOptions) -> None:
        side = 256 if options.quick else 8192
        a, b = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
        source = torch.randn(side, 8 * side, device=options.device).to(dtype)
        target = torch.empty_like(source)
        copy = [lambda: target.copy_(source)] * 2
        product = [lambda: torch.mm(a, b)] * 2
        copied, multiplied = (
            min(milliseconds(call, 10, options) for call in calls) / 1000
            for calls in (copy, product)
        )
        self.bytes_per_s = 2 * source.numel() * source.element_size() / copied
        self.operations_per_s = 2 * side**3 / multiplied


def _contestants(case: _Case, options: PartOptions) -> dict[str, Attention]:
    partition = case.partition
    found = {'ours': ours('triton', partition)}
    for name, build in (('flex', by_flex_attention), ('sdpa', by_sdpa)):
        attention = build(partition, options.device)
        # On a CPU the compiler of torch would need one of C++.
        found[name] = torch.compile(attention, dynamic=False) if options.is_cuda else attention
    return {**found, 'reference': ours('reference', partition)}


def _inputs(case: _Case, options: PartOptions) -> tuple[list[Tensor], Tensor]:
    """qkv, scale and table, and a gradient of the output."""
    torch.manual_seed(0)
    dtype, width = _DTYPES[case.dtype], case.heads * case.head_dim
    shape = (case.batch, case.side, case.side)
    qkv = torch.randn(*shape, 3 * width, device=options.device).to(dtype)
    grad = torch.randn(*shape, width, device=options.device).to(dtype)
    scale = 10 + torch.rand(case.heads, 1, 1, device=options.device)
    sides = (2 * case.window - 1,) * 2
    return [qkv, scale, 16 * torch.rand(case.heads, *sides, device=options.device)], grad


def _call(attention: Attention, inputs: list[Tensor], grad: Tensor | None) -> Callable[[], Any]:
    """The forward pass, or with a gradient of the output the backward pass as well."""
    if grad is None:

        def forward() -> Tensor:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(*leaves), leaves, grad)

    return both


def _measure(
    case: _Case, trains: bool, ceilings: _Ceilings, options: PartOptions, sink: Sink
) -> None:
    inputs, grad = _inputs(case, options)
    torch.compiler.reset()
    calls = {}
    exact = None
    differences = {}
    begin = time.monotonic()
    what = f'{case} {"forward + backward" if trains else "forward"}'
    for name, attention in _contestants(case, options).items():
        if trains and name == 'flex' and not options.is_cuda:
            continue  # it has no backward pass there
        call = _call(attention, inputs, grad if trains else None)
        try:
            found = call()
            call()
            synchronize(options.device)
        except Exception as error:  # whatever a library raises: the others go on
            sink.fail(f'{name}, {what}', error)
            continue
        first = (found[0] if trains else found).float()
        exact = first if exact is None else exact
        differences[name] = ((first - exact).norm() / exact.norm()).item()
        if not math.isfinite(differences[name]):
            sink.fail(f'{name}, {what}', 'the result is not finite')
        calls[name] = call
    print(what, f'ready after {time.monotonic() - begin:.1f} s', flush=True)
    rounds, seconds = (2, 0.0) if options.quick else (5, 0.02)
    samples = interleaved(calls, options, rounds, seconds)
    sink.add(_row(case, trains, samples, ceilings, differences))


def _row(
    case: _Case,
    trains: bool,
    samples: Mapping[str, list[float]],
    ceilings: _Ceilings,
    differences: Mapping[str, float],
) -> dict[str, Any]:
    bytes_, operations = case.least(trains)
    by_bytes, by_operations = (
        1000 * bytes_ / ceilings.bytes_per_s,
        1000 * operations / ceilings.operations_per_s,
    )
    floor = max(by_bytes, by_operations)
    mine = samples.get('ours')
    ratios = {
        name: pairwise_ratio(taken, mine)
        for name, taken in samples.items()
        if mine and name != 'ours'
    }
    return {
        'op': 'forward + backward' if trains else 'forward',
        'dtype': case.dtype,
        'window': case.window,
        'map': f'{case.side}x{case.side}',
        'batch': case.batch,
        'heads': case.heads,
        'head_dim': case.head_dim,
        'ms': {name: median(taken) for name, taken in samples.items()},
        'ratios': ratios,
        'ratio_to_flex': ratios.get('flex'),
        'floor_ms': floor,
        'bound': 'bytes' if by_bytes >= by_operations else 'operations',
        'share_of_floor': floor / median(mine) if mine else None,
        'relative_differences': dict(differences),
        'copy_gb_per_s': ceilings.bytes_per_s / 1e9,
        'product_tflop_per_s': ceilings.operations_per_s / 1e12,
    }
