"""The one attention function that layers call, and the choice of its backend."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from swinv2_mm.ops.window_attention.reference import reference_window_attention

_BACKENDS: dict[str, Callable[..., Tensor]] = {'reference': reference_window_attention}


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` accepts, `'auto'` first."""
    return ('auto', *_BACKENDS)


def check_backend(name: str) -> str:
    """Return `name` if it names a backend.

    Raises:
        ValueError: If it does not; the message lists the names that do.
    """
    if name not in available_backends():
        raise ValueError(
            f'unknown attention backend {name!r}: choose one of {", ".join(available_backends())}'
        )
    return name


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor,
    bias: Tensor,
    regions: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Scaled cosine attention with relative position bias (SwinV2 paper, equation 2).

    Shapes: B batch, nW windows per image, N tokens of a window, nH heads, D channels of a head.

    Args:
        q, k, v: `(B * nW, nH, N, D)`; not normalised, the windows of one image beside one another.
        logit_scale: `(nH, 1, 1)`, the logarithm of the inverse temperature as the model stores it.
        bias: `(nH, N, N)`, added to the logits of every window.
        regions: `(nW, N)` integer labels; a token attends to the tokens of its own label only.
            `None`: every token of a window attends to all others.
        dropout_p: Probability with which an attention weight is dropped.
        backend: One of `available_backends()`. Every backend equals `'reference'`.

    Returns:
        `(B * nW, nH, N, D)` in the dtype of `v`.

    Raises:
        ValueError: If `backend` is unknown.
    """
    name = check_backend(backend)
    run = _BACKENDS['reference' if name == 'auto' else name]
    return run(q, k, v, logit_scale, bias, regions, dropout_p)
