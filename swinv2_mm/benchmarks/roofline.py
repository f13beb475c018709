"""How much of the machine a model uses: its matrix products against a large one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.benchmarks.cases import SIZES, Case
from swinv2_mm.benchmarks.task import AUTOCAST, Task
from swinv2_mm.ops.linear import linear, uses_onednn

METHOD = (
    'matrix products and convolutions of our reference backend, padding included, counted by '
    'torch.utils.flop_counter.FlopCounterMode on fake tensors; 2 FLOPs for a multiply-add'
)
SIDE = {'cpu': 2048, 'cuda': 8192}
"""Side of the square matrices."""


def build_product(case: Mapping[str, Any], options: Mapping[str, Any]) -> Task:
    """The product of two large square matrices in the dtype of the case.

    Args:
        case: Of which dtype and device count.
        options: `product` is `'mm'` for `torch.mm`, `'matmul'` for the faster of the libraries that torch has.
    """
    parsed = Case.from_dict(case)
    side = SIDE[parsed.device]
    dtype = AUTOCAST.get(parsed.dtype, torch.float32)
    left, right, out = (torch.randn(side, side, device=parsed.device).to(dtype) for _ in range(3))

    def run() -> None:
        torch.mm(left, right, out=out)

    def run_linear() -> None:
        with torch.no_grad():
            linear(left, right)

    by = run
    if options['product'] == 'matmul' and uses_onednn(left, right):
        by = min((run, run_linear), key=_shortest_time)
    library = 'torch.mm' if by is run else 'oneDNN'
    return Task(by, None, parsed.device, {'flops': 2 * side**3, 'side': side, 'library': library})


def _shortest_time(call: Callable[[], None]) -> float:
    """Seconds of the fastest of five calls, after one that does not count."""
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def count_flops(case: Case) -> int:
    """Matrix-product FLOPs of one call of our backbone; in `'train'` mode of forward and backward pass."""
    from swinv2_mm import SwinTransformerV2

    size = SIZES[case.arch]
    with torch.device('meta'):
        model = SwinTransformerV2(
            vars(size),
            window_size=case.window,
            drop_path_rate=0.0,
            norm_cfg=None,
            attn_backend='reference',
        )
    # Shapes only: neither memory nor time. Not on the meta device itself, which has no autocast.
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
