"""A hook for the tests: writes the gradients of the first optimizer step of each process to a file."""

import os

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.nn.modules.batchnorm import _BatchNorm


@HOOKS.register_module()
class GradientRecorder(Hook):
    """Records gradients under conditions in which they can be compared between numbers of processes.

    Batch normalisation is switched to its running statistics: with batch statistics the output for an image depends on
    the others of its process. The generator is seeded anew for each batch: samplers of proposals draw from it.

    Args:
        path: Where to write; `{rank}` is replaced.
    """

    def __init__(self, path):
        self.path = path

    def before_train(self, runner):
        self.model = runner.model.module if runner.distributed else runner.model
        self.seen = []

        def record(optimizer, args, kwargs):
            if not os.path.exists(file):
                named = self.model.named_parameters()
                gradients = {
                    name: value.grad.clone() for name, value in named if value.grad is not None
                }
                torch.save({'gradients': gradients, 'images': self.seen}, file)

        file = self.path.format(rank=runner.rank)
        runner.optim_wrapper.optimizer.register_step_pre_hook(record)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.manual_seed(0)
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        assert norms
        for module in norms:
            module.eval()
        self.seen += [os.path.basename(sample.img_path) for sample in data_batch['data_samples']]
