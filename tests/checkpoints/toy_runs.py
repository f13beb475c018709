"""Train a model with one layer by a Runner of mmengine."""

import itertools

import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

_numbers = itertools.count()


class Toy(BaseModel):
    """A model with one layer for a Runner."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        out = self.layer(torch.stack(inputs) if isinstance(inputs, list) else inputs)
        return {'loss': out.square().mean()} if mode == 'loss' else [out]


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'score': float(len(results)), 'other': 1.0}


class Points(torch.utils.data.Dataset):
    metainfo = {'classes': ('point',)}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'inputs': torch.full((2,), float(index))}


def toy_runner(folder, model=None, **options):
    loader = dict(dataset=Points(), batch_size=2, sampler=dict(type=DefaultSampler, shuffle=False))
    return Runner(
        model=model or Toy(),
        work_dir=str(folder),
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=Evaluator([Nothing()]),
        test_evaluator=Evaluator([Nothing()]),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=2),
        experiment_name=f'toy_{next(_numbers)}',
        **options,
    )
