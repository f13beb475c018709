"""A hook for the tests: writes the losses of a training, averaged over its processes."""

import json

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class LossRecorder(Hook):
    """Records the loss of each iteration, and the numbers of elements of weights that a process has.

    Args:
        path: A json file: `{'losses': {iteration: loss}, 'own': ..., 'all': ...}`.
    """

    def __init__(self, path):
        self.path = path
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        all_reduce(loss, 'mean')
        self.losses[runner.iter + 1] = float(loss)

    def after_train(self, runner):
        groups = runner.optim_wrapper.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group['params']]
        own = [getattr(one, 'to_local', lambda one=one: one)() for one in parameters]
        if runner.rank == 0:
            content = {
                'losses': self.losses,
                'own': sum(one.numel() for one in own),
                'all': sum(one.numel() for one in parameters),
            }
            with open(self.path, 'w') as file:
                json.dump(content, file)
