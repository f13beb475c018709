"""A training of some milliseconds per iteration with mmengine's own Runner and this package's hooks.

`python tiny_run.py WORK_DIR '{"iters": 100, ...}'` runs it in a process of its own; see `build` for the settings.
"""

import json
import os
import sys
import time

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import distributed, nn

import swinv2_mm  # noqa: F401  registers the hooks
from swinv2_mm.engine.console import report_failure
from swinv2_mm.engine.interrupts import ignore_lost_workers


class Samples(torch.utils.data.Dataset):
    """Eight samples with a name; `ballast` bytes keep the pipe of a worker full."""

    def __init__(self, ballast):
        self.ballast = ballast

    def __len__(self):
        return 8

    def __getitem__(self, index):
        sample = BaseDataElement(metainfo={'img_path': f'{index}.png'})
        values = torch.linspace(0, 1, 4) * (index + 1)
        return {'values': values, 'sample': sample, 'ballast': b'x' * self.ballast}


class Model(BaseModel):
    """A linear layer. `nan_at` makes the loss NaN at that step, `sleep` is in seconds per step."""

    def __init__(self, nan_at, sleep):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.nan_at, self.sleep, self.steps = nan_at, sleep, 0

    def forward(self, values, mode, **_):
        time.sleep(self.sleep)
        output = self.layer(torch.stack(values))
        if mode != 'loss':
            return [BaseDataElement(score=float(value)) for value in output]
        self.steps += 1
        return {'loss': output.square().mean() * (float('nan') if self.steps == self.nan_at else 1)}


class Score(BaseMetric):
    """The mean output, which falls while the weights do."""

    def process(self, data_batch, data_samples):
        self.results += [sample['score'] for sample in data_samples]

    def compute_metrics(self, results):
        return {'score': sum(results) / len(results)}


def build(work_dir, iters=6, epochs=0, workers=0, checkpoint=None, nan_at=0, sleep=0.0, ballast=0,
          val_interval=2, resume=False, heartbeat=30.0, launcher='none'):  # fmt: skip
    """Return a Runner; `epochs` > 0 makes it count epochs of four iterations."""
    cfg = {}
    if launcher != 'none':
        distributed.init_process_group('gloo')
        cfg['model_wrapper_cfg'] = {'type': 'MMDistributedDataParallel', 'device_ids': None}
    torch.manual_seed(0)
    loader = {
        'batch_size': 2,
        'num_workers': workers,
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': Samples(ballast),
    }
    train = {'type': 'IterBasedTrainLoop', 'max_iters': iters, 'val_interval': val_interval}
    if epochs:
        train = {'by_epoch': True, 'max_epochs': epochs, 'val_interval': val_interval}
    infinite = {'sampler': {'type': 'InfiniteSampler', 'shuffle': False}}
    own = ('Heartbeat', 'Interrupt', 'InvalidLoss', 'LoaderWorkers', 'MetricsFile')
    hooks = {kind.lower(): {'type': f'swinv2_mm.{kind}Hook'} for kind in own}
    hooks['heartbeat']['timeout'] = heartbeat
    hooks['checkpoint'] = {
        'type': 'swinv2_mm.AtomicCheckpointHook',
        'interval': 1,
        'by_epoch': bool(epochs),
        'max_keep_ckpts': 1,
        **(checkpoint or {}),
    }
    hooks['logger'] = {'type': 'LoggerHook', 'interval': 1}
    return Runner(
        model=Model(nan_at, sleep),
        work_dir=str(work_dir),
        train_dataloader=loader if epochs else {**loader, **infinite},
        val_dataloader=dict(loader),
        train_cfg=train,
        val_cfg={},
        val_evaluator=Evaluator([Score(prefix='tiny')]),
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.001, 'momentum': 0.9}},
        default_hooks=hooks,
        launcher=launcher,
        resume=resume,
        cfg=cfg,
        env_cfg={'dist_cfg': {'backend': 'gloo'}},
        experiment_name=f'run{os.getpid()}',
        log_level='WARNING' if iters < 100 else 'INFO',
        log_processor={'by_epoch': bool(epochs)},
        randomness={'seed': 0},
    )


if __name__ == '__main__':
    runner = build(sys.argv[1], **json.loads(sys.argv[2]))
    try:
        runner.train()
    except Exception as error:  # as the tools do
        ignore_lost_workers()
        report_failure(error, runner.rank)
        sys.exit(1)
