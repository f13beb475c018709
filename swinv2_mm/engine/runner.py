"""mmengine's Runner as `tools/train.py` and `tools/test.py` use it, and mixed precision without a GPU."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.visualization import Visualizer
from torch import nn
from torch.nn import SyncBatchNorm

import swinv2_mm
from swinv2_mm.engine.console import continue_logging, message_of, say
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.sharded import ShardingRunner
from swinv2_mm.registry import OPTIM_WRAPPERS

_PACKAGE = Path(swinv2_mm.__file__).parent


def _is_building(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).name == 'build_functions.py'


@RUNNERS.register_module()
class TrainingRunner(ShardingRunner):
    """A Runner whose terminal shows progress, results and warnings, and which runs SyncBN on CPUs as BN."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; see `swinv2_mm.engine.console` for what the terminal shows of it."""
        logger = super().build_logger(*args, **kwargs)
        continue_logging(logger)
        return logger

    def build_model(self, model: Any) -> nn.Module:
        """Build the model; arguments that its parts refuse are mistakes in the config."""
        try:
            return super().build_model(model)
        except (AssertionError, TypeError, ValueError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = _PACKAGE in Path(frames[-1].filename).parents
            if any(map(_is_building, frames)) and (ours or isinstance(error, AssertionError)):
                place = '' if ours else f', at {frames[-1].filename}:{frames[-1].lineno}'
                raise SetupError(
                    f'The model cannot be built: {message_of(error)}{place}'
                ) from error
            raise

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """Build a visualizer of this run alone; mmengine shares one of the same name within a process."""
        if isinstance(visualizer, dict):
            visualizer = dict(visualizer, name=f'{self.experiment_name}_{time.time_ns()}')
        return super().build_visualizer(visualizer)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to its device and wrap it for distributed runs; SyncBN needs a GPU and becomes BN without."""
        alone = not self.distributed or get_device() == 'cpu'
        if alone and any(isinstance(module, SyncBatchNorm) for module in model.modules()):
            say('SyncBN runs as BN: there is one process, or no GPU')
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)


@RUNNERS.register_module()
class EvaluationRunner(TrainingRunner):
    """A Runner that evaluates a checkpoint."""

    def dump_config(self) -> None:
        """Keep the config that the training wrote into the work directory."""


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Run the forward pass under bfloat16 autocast of a device; mmengine's `AmpOptimWrapper` requires a GPU.

    bfloat16 has the exponents of float32, so the loss needs no scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Return the context of the forward pass."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield
