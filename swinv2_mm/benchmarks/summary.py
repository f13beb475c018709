"""From samples to figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def median(samples: Sequence[float]) -> float:
    """Middle of the samples."""
    return statistics.median(samples)


def quartiles(samples: Sequence[float]) -> list[float]:
    """First and third quartile; half of the samples lie between them."""
    if len(samples) < 2:
        return [samples[0], samples[0]]
    first, _, third = statistics.quantiles(samples, n=4, method='inclusive')
    return [first, third]


def pairwise_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio of two samples of one round.

    A machine that is slow for a minute slows both samples of a round, so that their ratio says more than the
    ratio of two medians.

    Args:
        above: One sample per round.
        below: The same, of another contestant.

    Raises:
        ValueError: There are not as many of both.
    """
    if len(above) != len(below) or not above:
        raise ValueError(
            f'{len(above)} and {len(below)} samples: expected one of each per round, and at least one round'
        )
    return median([a / b for a, b in zip(above, below)])


def fastest(ratios: Mapping[str, float]) -> str | None:
    """The peer with the smallest ratio to ours; None if there is none."""
    return min(ratios, key=lambda name: ratios[name]) if ratios else None


def share_of_peak(
    ours_ms: Sequence[float], product_ms: Sequence[float], flops: float, product_flops: float
) -> float:
    """Share of the machine's rate that the model reached: ideal time over its time, median over the rounds.

    Args:
        ours_ms: Time of the model per round.
        product_ms: Time of a large matrix product in the same rounds.
        flops: Matrix-product FLOPs of the model.
        product_flops: Those of the product.
    """
    return pairwise_ratio(product_ms, ours_ms) * flops / product_flops
