"""Training with FSDP2: parameters, gradients and optimizer states are divided among the processes.

Checkpoints are the whole ones of any other training, so that they can be resumed on any number of processes, and
tested without FSDP2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, convert_sync_batchnorm
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from swinv2_mm.engine.console import warn
from swinv2_mm.engine.devices import is_sharded
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.models.layers import SwinBlock
from swinv2_mm.registry import MODEL_WRAPPERS

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    _IS_AVAILABLE = hasattr(FSDPModule, 'set_reshard_after_forward')
except ImportError:  # an older torch, or one without torch.distributed
    _IS_AVAILABLE = False


@MODEL_WRAPPERS.register_module()
class FullyShardedModel(nn.Module):
    """A model whose parameters FSDP2 divides among the processes; each block of a backbone is a unit, so is the rest.

    A unit is gathered while it is computed. In evaluation it stays gathered until the next training step: processes
    may then compute different numbers of images or crops.

    Args:
        module: The model, with its parameters on the meta device, see `parameters_on_meta`. Here they get memory for
            the part of this process, with undefined values.

    Raises:
        SetupError: torch is too old, or the model was not built by a `ShardingRunner`.
    """

    module: Any

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not _IS_AVAILABLE:
            raise SetupError(
                f'FullyShardedModel needs torch 2.8 or later, and this is torch {torch.__version__}.'
            )
        if not all(parameter.is_meta for parameter in module.parameters()):
            raise SetupError(
                'FullyShardedModel is for tools/train.py and tools/test.py of this package: other runners build '
                'the whole model in every process.'
            )
        self.module = module
        self.sharded: Any = module.module if isinstance(module, BaseTTAModel) else module
        device = torch.device(get_device())
        mesh = distributed.device_mesh.init_device_mesh(
            device.type, (distributed.get_world_size(),)
        )
        self.scalars = _replace_scalars(self.sharded)
        for part in list(self.sharded.modules()):
            if isinstance(part, SwinBlock):
                fully_shard(part, mesh=mesh)
        fully_shard(self.sharded, mesh=mesh)
        self.sharded._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
        module.to(device)  # tells mmengine's preprocessors
        self.units = [part for part in self.sharded.modules() if isinstance(part, FSDPModule)]
        self.sharded.register_load_state_dict_pre_hook(self._before_load)
        self._stays_gathered = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Run a step of the training, see `mmengine.model.BaseModel`."""
        self._keep_gathered(False)
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> list[Any]:
        """Return the predictions for a batch of the validation set."""
        self._keep_gathered(True)
        return self.module.val_step(data)

    def test_step(self, data: Any) -> list[Any]:
        """Return the predictions for a batch of the test set."""
        self._keep_gathered(True)
        return self.module.test_step(data)

    def _keep_gathered(self, keep: bool) -> None:
        if keep != self._stays_gathered:
            self._stays_gathered = keep
            self.sharded.set_reshard_after_forward(not keep)
            self.sharded.set_reshard_after_forward(False, recurse=False)  # the backward needs it
            for unit in self.units:
                unit.reshard()

    def scatter(self, whole: Mapping[str, Tensor] | None) -> None:
        """Set the weights to those of the first process: a whole `state_dict` there, None in the others."""
        state = self.sharded.state_dict()
        for name, own in state.items():
            if whole is None:
                value = torch.empty(own.shape, dtype=own.dtype, device=get_device())
            else:
                value = whole[name].detach().to(get_device()).reshape(own.shape).contiguous()
            if isinstance(own, DTensor):
                value = distribute_tensor(value, own.device_mesh, own.placements)
            else:
                broadcast(value)
            state[name] = value
        self.sharded.load_state_dict(state)

    def _before_load(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Divide the whole weights that are loaded; every process has them."""
        for unit in self.units:
            unit.reshard()
        for name, parameter in self.sharded.named_parameters():
            if prefix + name in state:
                state[prefix + name] = _divided(state[prefix + name], parameter)


class ShardingRunner(Runner):
    """A Runner that can train and test a `FullyShardedModel`."""

    _built_from: dict[str, Any] | None = None
    """Config of a model that is divided among the processes."""

    def build_model(self, model: Any) -> nn.Module:
        """Build the model; with `FullyShardedModel`, without memory for its parameters."""
        wanted = is_sharded(self.cfg.get('model_wrapper_cfg'))
        if wanted and not self.distributed:
            warn('FullyShardedModel is for several processes: this one trains the whole model')
        if not (wanted and self.distributed):
            return super().build_model(model)
        self._built_from = copy.deepcopy(model)
        with parameters_on_meta():
            return super().build_model(model)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed runs."""
        if self._built_from is None:
            return super().wrap_model(model_wrapper_cfg, model)
        if self.cfg.get('sync_bn'):
            with parameters_on_meta():
                model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        options = {key: value for key, value in (model_wrapper_cfg or {}).items() if key != 'type'}
        if options:
            raise SetupError(
                f'FullyShardedModel has no options, and is given {", ".join(options)}.'
            )
        return FullyShardedModel(model)

    def train(self) -> nn.Module:
        """Train the model."""
        if self._built_from is not None and any(isinstance(hook, EMAHook) for hook in self.hooks):
            raise SetupError('FullyShardedModel does not work with EMAHook: remove one of them.')
        return super().train()

    def _init_model_weights(self) -> None:
        """Let the first process initialise the whole model on its CPU, as without FSDP2, and scatter it."""
        if self._built_from is None:
            super()._init_model_weights()
            return
        self._parameters()  # before the first step rather than at the first checkpoint
        whole = None
        if self.rank == 0:
            model = MODELS.build(copy.deepcopy(self._built_from))
            if hasattr(model, 'init_weights'):
                model.init_weights()
            whole = model.state_dict()
        self.model.scatter(whole)

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Load a checkpoint; each process of a `FullyShardedModel` takes its part of it."""
        if self._built_from is None:
            return super().load_checkpoint(filename, map_location, *args, **kwargs)
        checkpoint = super().load_checkpoint(filename, 'cpu', *args, **kwargs)
        if self._resume and 'optimizer' in checkpoint:
            parameters = self._parameters()
            for index, state in checkpoint['optimizer']['state'].items():
                for key, value in state.items():
                    if key != 'step' and isinstance(value, Tensor):
                        state[key] = _divided(value, parameters[index])
        return checkpoint

    def save_checkpoint(self, *args: Any, save_optimizer: bool = True, **kwargs: Any) -> None:
        """Save a checkpoint; all processes of a `FullyShardedModel` must call it, and the first writes the file."""
        if self._built_from is None:
            super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)
            return
        model: Any = self.model.sharded
        whole = {model: self._whole(model.state_dict())}
        if save_optimizer:
            whole[self.optim_wrapper] = self._whole(self.optim_wrapper.state_dict())
        if self.rank == 0:
            self._restore_scalars(*whole.values())
        for part, state in whole.items():
            part.state_dict = lambda state=state: state  # what mmengine saves
        try:
            super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)
        finally:
            for part in whole:
                del part.state_dict

    def _restore_scalars(self, weights: dict[str, Any], optimizer: Any = None) -> None:
        """Undo `_replace_scalars` in the states of model and optimizer."""
        for name in self.model.scalars:
            weights[name] = weights[name].reshape(())
        scalars = {id(self.model.sharded.get_parameter(name)) for name in self.model.scalars}
        for index, parameter in enumerate(self._parameters() if optimizer else ()):
            if id(parameter) in scalars:
                state = optimizer['state'].get(index, {})
                state.update({key: value.reshape(()) for key, value in state.items()})

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with whole tensors on the CPU of the first process, and None in the others."""

        def gather(value: Any) -> Tensor | None:
            value = value.full_tensor()  # by all processes
            return value.cpu() if self.rank == 0 else None

        whole = apply_to(state, lambda value: isinstance(value, DTensor), gather)
        if hasattr(state, '_metadata'):
            whole._metadata = state._metadata
        return whole

    def _parameters(self) -> list[nn.Parameter]:
        """Return the parameters in the order of the optimizer's state."""
        if isinstance(self.optim_wrapper, OptimWrapperDict):
            raise SetupError('FullyShardedModel works with one optimizer, not with several.')
        groups = self.optim_wrapper.optimizer.param_groups
        return [parameter for group in groups for parameter in group['params']]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Give parameters of modules that are built inside no memory: they are on the meta device.

    Unlike under `torch.device('meta')`, buffers and other tensors such as the anchors of a head have their values.
    """

    def drop(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        if parameter.is_meta:  # shared with another module
            return None
        return nn.Parameter(parameter.detach().to('meta'), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(drop)
    try:
        yield
    finally:
        handle.remove()


def _replace_scalars(model: nn.Module) -> list[str]:
    """Replace parameters without dimensions, which FSDP2 cannot divide, by `(1,)`; return their names."""
    found = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    for name in found:
        owner, _, own_name = name.rpartition('.')
        old = model.get_parameter(name)
        new = nn.Parameter(old.detach().reshape(1), old.requires_grad)
        setattr(model.get_submodule(owner), own_name, new)
    return found


def _divided(value: Any, like: Tensor) -> Any:
    """Return the part of a whole tensor that belongs to a part of a parameter, on its device; others as they are."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor) or not isinstance(value, Tensor):
        return value
    if value.shape != like.shape and not value.numel() == like.numel() == 1:
        return value
    value = value.reshape(like.shape).to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
