"""Running a training step without computing it, to count the bytes of its tensors."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

_LARGE = 2**16  # bytes from which memory comes from the system, untouched
_EMPTY = {'empty', 'empty_strided', 'empty_like', 'new_empty'}
_ZEROS = {'zeros', 'zeros_like', 'new_zeros'}
_VALUES = {'ones_like', 'full_like', 'new_full', 'new_ones', 'rand_like', 'randn_like'}


class Rehearsal(TorchDispatchMode):
    """Run a training step on a CPU with zeros for all that depends on weights, and count the bytes of live tensors.

    The result of an operator on weights, or on what was computed from them, is `blank`: memory of the right shape that
    is neither computed nor touched, so that it takes neither time nor room. Operators whose results are integers, and
    those that are not differentiated (outside of `skipping`), are computed: heads choose anchors and regions as in a
    training, which is not possible with tensors without data.

    Attributes:
        live: Bytes of the tensors that exist.
        peaks: The largest values of `live` and the `gradients` at that time, between one gradient of a weight and the
            next: in the course of a backward pass activations vanish and gradients appear.
        flops: Operations in products, as `torch.utils.flop_counter` counts them.
        gradients: Bytes of the gradients of weights that exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}
        self._blank: set[int] = set()
        self._skips_all = False
        self.reset()

    def reset(self) -> None:
        """Count from zero: what exists now is not counted."""
        self.live = self.flops = self.gradients = 0
        self.peaks: list[tuple[int, int]] = [(0, 0)]

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Skip what is not differentiated, too, and make uninitialised memory blank."""
        before, self._skips_all = self._skips_all, True
        try:
            yield
        finally:
            self._skips_all = before

    def skip_inside(self, module: nn.Module) -> None:
        """Run the forward pass of a module under `skipping`."""
        forward = module.forward

        def skipped(*args: Any, **kwargs: Any) -> Any:
            with self.skipping():
                return forward(*args, **kwargs)

        module.forward = skipped

    def add_gradient(self, weight: Tensor, kept: float) -> None:
        """Count the gradient of a weight, of which a share is kept on this device."""
        size = 0 if weight.grad is None else weight.grad.nbytes
        self.live -= round(size * (1 - kept))
        self.gradients += round(size * kept)
        self.peaks.append((self.live, self.gradients))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run or skip an operator, and count its results."""
        kwargs = kwargs or {}
        out = self._skip(func, args, kwargs)
        out = func(*args, **kwargs) if out is None else out
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _skip(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator without computing it; None if it must be computed."""
        schema, name = func._schema, func._overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        blank = name not in _ZEROS and (name not in _EMPTY or self._skips_all)
        if name not in _EMPTY | _ZEROS:
            if name in _VALUES or not any(map(self._is_blank, given)):
                return None
            if not self._skips_all and not any(x.requires_grad for x in given):
                return None
            if schema.is_mutable:
                return args[0] if name.endswith('_') and self._is_blank(args[0]) else None
            if any(result.alias_info is not None for result in schema.returns):
                return None  # a view
        try:
            shadows, options = tree_map(_shadow, (args, kwargs))
            if 'device' in kwargs or not given:
                options['device'] = 'meta'
            out = func(*shadows, **options)
        except Exception:  # the shape depends on values, or there is no rule for it
            return None
        found = [x for x in tree_leaves(out) if x is not None]
        if not all(isinstance(x, Tensor) and x.is_meta and x.is_floating_point() for x in found):
            return None
        return tree_map(lambda x: self._allocate(x, blank) if isinstance(x, Tensor) else x, out)

    def _is_blank(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self._blank

    def _allocate(self, like: Tensor, blank: bool) -> Tensor:
        """Return zeros in the layout of a tensor on the meta device."""
        size = like.untyped_storage().nbytes()
        pages = torch.frombuffer(_pages(size), dtype=torch.uint8) if size >= _LARGE else None
        memory = torch.zeros(size, dtype=torch.uint8) if pages is None else pages
        storage = memory.untyped_storage()
        out = torch.empty(0, dtype=like.dtype).set_(storage, 0, like.shape, like.stride())
        self._count(out)
        if blank:
            self._blank.add(storage._cdata)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or tensor.is_meta:
            return

        def freed(_: Any) -> None:
            del self._storages[key]
            self._blank.discard(key)
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peaks[-1] = max(self.peaks[-1], (self.live, self.gradients))


def _shadow(x: Any) -> Any:
    """Return a tensor without data in place of a tensor."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device='meta')


def _pages(size: int) -> mmap.mmap:
    """Return zeros that take no memory until they are written to."""
    if not hasattr(mmap, 'MAP_PRIVATE'):
        return mmap.mmap(-1, size)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, 'MAP_NORESERVE', 0)
    return mmap.mmap(-1, size, flags=flags)
