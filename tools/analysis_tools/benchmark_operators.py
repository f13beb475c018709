"""Measure mmcv's operators as they are here, compiled or provided by this package; see docs/limits.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import swinv2_mm  # noqa: F401  (provides operators where mmcv has none)

CHANNELS = 256
LEVELS = [(100, 168), (50, 84), (25, 42), (13, 21)]  # of an image of 800 x 1344
CLASSES = 80

Row = tuple[str, str, Callable[[], Tensor], list[Tensor]]
"""The operator, sizes, a call, and the tensors whose gradients are computed."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--min-time', type=float, default=2, metavar='S', help='of each call (2)')
    return parser.parse_args()


def random_boxes(count: int, device: torch.device) -> Tensor:
    """Return boxes (count, 4) of 16 to 216 pixels in an image of 800 x 1344."""
    corners = torch.rand(count, 2, device=device) * torch.tensor([1128.0, 584.0], device=device)
    return torch.cat((corners, corners + 16 + 200 * torch.rand(count, 2, device=device)), dim=1)


def rows(device: torch.device) -> Iterator[Row]:
    """Yield the operators at the sizes of detectors."""
    from mmcv import ops

    def random(*size: int) -> Tensor:
        return torch.rand(size, device=device, requires_grad=True)

    boxes, scores = random_boxes(2000, device), torch.rand(2000, device=device)
    yield 'nms', '2,000 boxes', lambda: ops.nms(boxes, scores, 0.7)[1], []
    yield 'softnms', '1,000 boxes', lambda: ops.soft_nms(boxes[:1000], scores[:1000])[1], []
    yield 'bbox_overlaps', '2,000 x 100', lambda: ops.bbox_overlaps(boxes, boxes[:100]), []
    angles = torch.rand(2000, 1, device=device) * 3
    rotated = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], angles), 1)
    yield 'box_iou_rotated', '2,000 x 2,000', lambda: ops.box_iou_rotated(rotated, rotated), []
    yield 'nms_rotated', '2,000 boxes', lambda: ops.nms_rotated(rotated, scores, 0.1)[1], []

    features = random(1, CHANNELS, *LEVELS[0])
    regions = torch.cat((torch.zeros(512, 1, device=device), boxes[:512]), dim=1)
    for name, pool in (('roi_align', ops.roi_align), ('roi_pool', ops.roi_pool)):
        yield (
            name,
            '512 regions, 7 x 7',
            lambda pool=pool: pool(features, regions, 7, 1 / 8),  # type: ignore[misc]
            [features],
        )

    small = random(1, CHANNELS, *LEVELS[1])
    weight, offset = random(CHANNELS, CHANNELS, 3, 3), random(1, 18, *LEVELS[1])
    mask = random(1, 9, *LEVELS[1])
    yield (
        'deform_conv',
        '50 x 84, 3 x 3',
        lambda: ops.deform_conv2d(small, offset, weight, 1, 1),
        [small, offset, weight],
    )
    yield (
        'modulated_deform_conv',
        '50 x 84, 3 x 3',
        lambda: ops.modulated_deform_conv2d(small, offset, mask, weight, None, 1, 1),
        [small, offset, mask, weight],
    )
    kernels = random(1, 25, 2 * LEVELS[1][0], 2 * LEVELS[1][1])
    yield (
        'carafe',
        '50 x 84, twice as large',
        lambda: ops.carafe(small, kernels, 5, 1, 2),
        [small, kernels],
    )
    masked = ops.MaskedConv2d(CHANNELS, CHANNELS, 3, padding=1).to(device)
    where = torch.rand(1, *LEVELS[0], device=device) < 0.1
    yield (
        'masked_conv2d',
        '100 x 168, a tenth of it',
        lambda: masked(features.detach(), where).detach(),
        [],
    )

    count = sum(height * width for height, width in LEVELS)
    value, places = random(1, count, 8, CHANNELS // 8), random(1, count, 8, len(LEVELS), 4, 2)
    weights = random(1, count, 8, len(LEVELS), 4)
    shapes = torch.tensor(LEVELS, device=device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    yield (
        'ms_deform_attn',
        f'{count:,} queries, 4 levels',
        lambda: attend(value, shapes, starts, places, weights, 64),
        [value, places, weights],
    )
    logits, target = random(count, CLASSES), torch.randint(0, CLASSES, (count,), device=device)
    for name, loss in (
        ('sigmoid_focal_loss', ops.sigmoid_focal_loss),
        ('softmax_focal_loss', ops.softmax_focal_loss),
    ):
        yield (
            name,
            f'{count:,} x {CLASSES}',
            lambda loss=loss: loss(logits, target, 2.0, 0.25, None, 'mean'),  # type: ignore[misc]
            [logits],
        )


def milliseconds(call: Callable[[], object], min_time: float) -> float:
    """Return the median time of a call."""
    timer = Timer('call()', globals=dict(call=call), num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_time).median * 1e3


def main() -> int:
    """Run the tool and return its exit code."""
    args = parse_args()
    torch.manual_seed(0)
    print('| operator | sizes | forward, ms | with gradients, ms |\n| --- | --- | --- | --- |')
    for name, sizes, call, inputs in rows(torch.device(args.device)):

        def step(call: Callable[[], Tensor] = call, inputs: list[Tensor] = inputs) -> None:
            torch.autograd.grad(call().sum(), inputs)

        with torch.no_grad():
            forward = milliseconds(call, args.min_time)
        both = f'{milliseconds(step, args.min_time):.2f}' if inputs else '-'
        print(f'| `{name}` | {sizes} | {forward:.2f} | {both} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
