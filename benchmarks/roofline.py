"""Matrix-product rate of a model relative to that of a large matrix product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import SIZES, Case
from benchmarks.task import DTYPES, Task, milliseconds
from swinv2_mm.ops.linear import linear

METHOD = (
    'matrix products and convolutions of our reference backend, padding included, counted by '
    'torch.utils.flop_counter.FlopCounterMode on fake tensors; 2 FLOPs for a multiply-add'
)
_SIDE = {'cpu': 2048, 'cuda': 8192}


def build(case: Case, options: Mapping[str, Any]) -> Task:
    """Build a task that measures the machine in the dtype of the case.

    Args:
        case: The case; only dtype and device are used.
        options: `product`: `'mm'` for `torch.mm` of square matrices, `'matmul'` for the faster of the libraries of
            torch, `'copy'` for a copy of a matrix; `side`: size of the matrices, None for the default.

    Returns:
        The task; its info contains the amount of work in Gflop or GB.
    """
    side = options['side'] or _SIDE[case.device]
    dtype, device = DTYPES[case.dtype], case.device
    if options['product'] == 'copy':
        source = torch.randn(side, 8 * side, device=device).to(dtype)
        target = torch.empty_like(source)
        info = {'unit': 'gb', 'amount': 2 * source.numel() * source.element_size() / 1e9}
        return Task(lambda: target.copy_(source), device, info=info)
    left, right, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))

    def run() -> None:
        torch.mm(left, right, out=out)

    def run_linear() -> None:
        with torch.no_grad():
            linear(left, right)

    calls = (run, run_linear) if options['product'] == 'matmul' else (run,)
    times = {call: min(milliseconds(call, device) for _ in range(3)) for call in calls}
    info = {'unit': 'gflops', 'amount': 2 * side**3 / 1e9}
    return Task(min(calls, key=lambda call: times[call]), device, info=info)


def count_flops(case: Case) -> int:
    """Return the matrix-product FLOPs of one call of our backbone, in `'train'` mode with the backward pass."""
    from swinv2_mm import SwinTransformerV2

    options: dict[str, Any] = dict(drop_path_rate=0.0, norm_cfg=None, attn_backend='reference')
    with torch.device('meta'):
        model = SwinTransformerV2(vars(SIZES[case.arch]), window_size=case.window, **options)
    # Fake tensors need neither memory nor time. The meta device does not support autocast.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device='cpu')
        model.train(case.mode == 'train')
        image = torch.empty(case.batch, 3, *case.input)
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(case.mode == 'train'):
            maps = model(image)
            if case.mode == 'train':
                torch.stack([x.square().mean() for x in maps]).sum().backward()
    return counter.get_total_flops()
