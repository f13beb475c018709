"""Tiny trainings of the quickstarts with mmengine's own Runner, which record all that must be equal after a resume."""

import itertools
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import swinv2_mm  # noqa: F401  # registers the hooks

_runs = itertools.count()


class Recorder(Hook):
    """Records every step and validation by its iteration, and counts the samples that are read in this process."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.steps, self.metrics, self.reads = {}, {}, 0

    def before_train(self, runner):
        dataset = runner.train_dataloader.dataset
        prepare = getattr(dataset, 'prepare_data', None)

        def counted(index):
            self.reads += 1
            return prepare(index)

        if prepare and not runner.train_dataloader.num_workers:
            dataset.prepare_data = counted

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        group = runner.optim_wrapper.optimizer.param_groups[0]
        files = [Path(sample.img_path).stem for sample in data_batch['data_samples']]
        losses = {key: float(torch.as_tensor(value).detach()) for key, value in outputs.items()}
        where = runner.epoch, batch_idx
        self.steps[runner.iter + 1] = (where, files, group['lr'], group['weight_decay'], losses)

    def after_val_epoch(self, runner, metrics=None):
        self.metrics[runner.iter] = dict(metrics)


class Run:
    """A finished training.

    Attributes:
        steps: Iteration to place in the epoch, files, learning rate, weight decay and losses.
        metrics: Iteration to the metrics of its validation.
        reads: Number of training samples that were read.
        lines: What mmengine's logger writes, without times.
        state: The final weights, and their averages.
        folder: The work directory.
    """

    def __init__(self, cfg, folder, resume=None):
        cfg, self.folder = cfg.copy(), folder
        cfg.work_dir, cfg.experiment_name = str(folder), f'resume_{next(_runs)}'
        cfg.visualizer.name = cfg.experiment_name
        cfg.load_from, cfg.resume = (str(resume), True) if resume else (None, False)
        self.runner = runner = Runner.from_cfg(cfg)
        recorder = Recorder()
        runner.register_hook(recorder)
        runner.train()
        self.steps, self.metrics, self.reads = recorder.steps, recorder.metrics, recorder.reads
        self.state = {key: value.clone() for key, value in runner.model.state_dict().items()}
        for hook in runner.hooks:
            if hasattr(hook, 'ema_model'):
                self.state.update({f'ema.{k}': v for k, v in hook.ema_model.state_dict().items()})
            if hasattr(hook, 'wait_count'):
                self.state['wait_count'] = torch.tensor(hook.wait_count)
                self.state['best_score'] = torch.tensor(float(hook.best_score))
        log = Path(runner._log_dir) / 'vis_data' / 'scalars.json'
        self.lines = [json.loads(line) for line in log.read_text().splitlines()]
        for line in self.lines:
            for key in ('time', 'data_time', 'memory', 'eta'):
                line.pop(key, None)


def assert_continues(whole, rest, after):
    """A resumed run gives what the uninterrupted one gave after an iteration, to the last digit."""
    assert rest.steps == {key: value for key, value in whole.steps.items() if key > after}
    assert rest.metrics == {key: value for key, value in whole.metrics.items() if key >= after}
    assert rest.lines == whole.lines[len(whole.lines) - len(rest.lines) :]
    assert rest.state.keys() == whole.state.keys()
    for name, value in whole.state.items():
        assert rest.state[name].equal(value), name


def assert_same_schedule(whole, rest, after):
    """A resumed run has the batches, learning rates and weight decay of another run after an iteration."""
    planned = {key: step[:4] for key, step in whole.steps.items() if key > after}
    assert {key: step[:4] for key, step in rest.steps.items()} == planned


def tiny(path, **changes):
    """The config of a quickstart at 64 pixels with a nano backbone, and with random numbers in data and model."""
    cfg = Config.fromfile(path)
    backbone, channels = cfg.model.backbone, [16, 32, 64, 128]
    backbone.arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    backbone.window_size, backbone.drop_path_rate = 4, 0.3
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[2].scale = (64, 64)
    if 'decode_head' in cfg.model:
        head = dict(in_channels=channels, channels=16, pool_scales=(2,), dropout_ratio=0.3)
        cfg.model.decode_head.update(head)
        cfg.model.data_preprocessor.size = (64, 64)
        cfg.val_dataloader.dataset.pipeline[1].scale = (64, 64)
        pipeline.insert(3, dict(type='PhotoMetricDistortion'))
    else:
        cfg.model.neck.in_channels = channels
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.log_level = 'WARNING'
    hooks = cfg.default_hooks
    hooks.resume_state = dict(type='swinv2_mm.ResumeStateHook')
    hooks.logger = dict(type='LoggerHook', interval=1)
    hooks.checkpoint = dict(type='swinv2_mm.AtomicCheckpointHook', by_epoch=False, interval=2)
    cfg.merge_from_dict(changes)
    return cfg
