"""mmengine's Runner with a quiet console, checks of what it builds, and processes without a GPU."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, cast

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from swinv2_mm.checkpoints import WINDOWS_KEY
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.engine.console import Console, ConsoleHandler
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.interrupts import InterruptHook
from swinv2_mm.engine.progress import ProgressHook
from swinv2_mm.engine.sample_check import check_labels, check_samples, empty_message


class ConsoleRunner(Runner):
    """A Runner that tells the user what matters and keeps the rest for the log file.

    Attributes:
        console: Where it speaks; set by `build`.
        on_gpu: Whether the model runs on a GPU; set by `build`.
        testing: Whether the run evaluates a checkpoint; set by `build`.
        progress: The hook that prints and keeps the metrics.
        interrupts: The hook that listens to Ctrl-C.
    """

    console: Console
    on_gpu: bool
    testing: bool
    progress: ProgressHook
    interrupts: InterruptHook

    @classmethod
    def build(
        cls, cfg: Config, console: Console, on_gpu: bool, testing: bool = False
    ) -> ConsoleRunner:
        """Builds the runner of a config.

        Args:
            cfg: The config.
            console: Where to speak.
            on_gpu: Whether the model runs on a GPU.
            testing: Whether the run evaluates a checkpoint.
        """
        # The base class logs, wraps the model and writes files in its constructor: these must be there before it.
        attributes = {'console': console, 'on_gpu': on_gpu, 'testing': testing}
        bound = cast(type[ConsoleRunner], type(cls.__name__, (cls,), attributes))
        runner = cast(ConsoleRunner, bound.from_cfg(cfg))
        logger_cfg = cfg.get('default_hooks', {}).get('logger') or {}
        runner.progress = ProgressHook(console, logger_cfg.get('interval', 10))
        runner.register_hook(runner.progress)
        runner.interrupts = InterruptHook(console)
        runner.register_hook(runner.interrupts)
        return runner

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Builds the logger, with the console's handler in place of the one that prints every record."""
        logger = super().build_logger(*args, **kwargs)
        logger.handlers = [
            handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)
        ]
        log_file = next((handler.baseFilename for handler in logger.handlers), None)
        # The logger of the other processes has no file; what they print goes into one of their own.
        own = f'{self._log_dir}/{self.timestamp}_rank{self.rank}.log'
        self.console.open_log(log_file or own)
        logger.handlers.append(ConsoleHandler(self.console))
        return logger

    def dump_config(self) -> None:
        """Writes the config to the work directory; a test leaves the one of the training there alone."""
        if not self.testing:
            super().dump_config()

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wraps the model for distributed runs; on CPUs without the device ids and SyncBN that need a GPU."""
        if self.distributed and not self.on_gpu and not is_model_wrapper(model):
            model = revert_sync_batchnorm(model)
            model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
                'device_ids': None,
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None
    ) -> None:
        """Scales the learning rate by the effective batch size, gradient accumulation included, and says both."""
        accumulation = getattr(optim_wrapper, '_accumulative_counts', 1)
        batch = self.cfg.train_dataloader.batch_size
        effective = batch * self.world_size * accumulation
        scale = bool(auto_scale_lr and auto_scale_lr.get('enable', False))
        base = (auto_scale_lr or {}).get('base_batch_size')
        if scale and base:
            # mmengine counts the samples of one backward pass, not of one step.
            super().scale_lr(
                optim_wrapper, {'enable': True, 'base_batch_size': base / accumulation}
            )
        rates = [group['lr'] for group in optim_wrapper.optimizer.param_groups]
        note = f', scaled from batch {base}' if scale and base else ''
        self.console.say(
            f'batch: {batch} per device x {self.world_size} device{"s" if self.world_size > 1 else ""} '
            f'x {accumulation} accumulation = {effective}; learning rate: {max(rates):.4g}{note} '
            f'({type(optim_wrapper.optimizer).__name__})'
        )
        if base and not scale and effective != base:
            self.console.warn(
                f'the learning rate is for a batch of {base}, this run has {effective}: use --auto-scale-lr '
                'or set optim_wrapper.optimizer.lr.'
            )

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Builds the training loop and looks at what its data set gives to the model."""
        built = super().build_train_loop(loop)
        dataset = built.dataloader.dataset
        num_classes = self._segmentation_classes()
        if self.cfg.default_scope == 'mmpretrain':
            check_labels(dataset, self._label_classes())
        elif self.cfg.default_scope == 'mmdet' or num_classes is not None:
            warning = check_samples(dataset, num_classes)
            if warning:
                self.console.warn(warning)
        self.console.say(f'data: {len(dataset)} training images')
        return built

    def _segmentation_classes(self) -> int | None:
        """Returns the number of classes of the segmentation head; None for a detector."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return getattr(model, 'num_classes', None) if self.cfg.default_scope == 'mmseg' else None

    def _label_classes(self) -> int | None:
        """Returns the number of classes of a classifier's head; None if it does not say."""
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return getattr(getattr(model, 'head', None), 'num_classes', None)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Builds a data loader; says in words what an empty data set or a broken annotation file is."""
        try:
            return Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except json.JSONDecodeError as error:
            raise SetupError(f'{_annotations(dataloader)} is not valid json: {error}.') from error
        except ImageSetError as error:
            # Registries raise it anew, with the place of the class before the words.
            while isinstance(error.__context__, ImageSetError):
                error = error.__context__
            raise SetupError(f'{error}.') from error
        except RuntimeError as error:
            if 'Found 0 files in subfolders' in str(error):
                raise SetupError(f'{_annotations(dataloader)} holds no picture.') from error
            raise
        except ValueError as error:
            # A data set packs its list into one array, which fails for an empty list.
            if 'need at least one array to concatenate' in str(error):
                raise SetupError(empty_message(_annotations(dataloader))) from error
            raise

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint and says how much of the model it filled.

        Raises:
            SetupError: It holds none of the model's weights, or, when testing, not all of them.
        """
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model = getattr(model, 'module', model)  # the model inside one for test-time augmentation
        problem, is_fatal = _compare(model, checkpoint, filename, testing=self.testing)
        if is_fatal:
            raise SetupError(problem)
        if problem:
            self.console.warn(problem)
        return checkpoint


def _compare(
    model: nn.Module, checkpoint: Mapping[str, Any], filename: str, testing: bool
) -> tuple[str, bool]:
    """Compares a model with a checkpoint.

    Returns:
        What is wrong, in words, and whether the run makes no sense with it.
    """
    loaded = {
        re.sub(r'^module\.', '', key): value
        for key, value in checkpoint.get('state_dict', checkpoint).items()
    }
    wanted = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith(('num_batches_tracked', WINDOWS_KEY))
    }
    missing = [key for key in wanted if key not in loaded]
    unlike = [key for key in wanted if key in loaded and loaded[key].shape != wanted[key].shape]
    lacking = len(missing) + len(unlike)
    if not lacking:
        return '', False
    example = (
        f'{unlike[0]} is {tuple(loaded[unlike[0]].shape)} there and {tuple(wanted[unlike[0]].shape)} in the model'
        if unlike
        else f'{missing[0]} is not in it'
    )
    if lacking == len(wanted):
        return (
            f"The checkpoint {filename} holds none of the model's {len(wanted)} tensors ({example}).",
            True,
        )
    problem = f"The checkpoint {filename} lacks {lacking} of the model's {len(wanted)} tensors ({example})"
    if testing:
        return f'{problem}: was it trained with another config?', True
    return f'{problem}; they start from their initialisation.', False


def _annotations(dataloader: Any) -> str:
    """Returns a data loader's data set in words."""
    dataset = dataloader['dataset'] if isinstance(dataloader, Mapping) else {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    where = dataset.get('ann_file') or dataset.get('data_prefix') or ''
    return f'The data set {dataset.get("type", "")} ({where} in {dataset.get("data_root") or "."})'
