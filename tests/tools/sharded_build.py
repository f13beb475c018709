"""Processes that build a model for FSDP2 without memory for its weights, and compare it with the whole model.

`sharded_build.py` in processes of torchrun prints `same` in the first one.
"""

import torch
from mmengine.model import BaseModel
from torch import distributed, nn

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.sharded import FullyShardedModel, parameters_on_meta


class Model(BaseModel):
    """A backbone with a scalar parameter, as heads of mmdet have."""

    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2))
        options = dict(window_size=4, out_indices=(0, 1), norm_cfg=dict(type='BN'), with_cp=True)
        self.backbone = SwinTransformerV2(arch, drop_path_rate=0.0, **options)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs, mode='loss'):
        loss = sum(feature.square().mean() for feature in self.backbone(inputs)) * self.factor
        return {'loss': loss} if mode == 'loss' else loss


def main():
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    torch.manual_seed(rank)  # only the first process has the weights that count
    whole = Model()
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.2)
    whole.backbone.retarget([(8, 8), (8, 8)])

    with parameters_on_meta():
        model = Model()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(name.endswith('running_mean') and b.is_meta for name, b in model.named_buffers())
    wrapper = FullyShardedModel(model)
    assert len(wrapper.units) == 1 + 3
    wrapper.scatter(whole.state_dict() if rank == 0 else None)
    own = sum(parameter.to_local().numel() for parameter in wrapper.parameters())
    full = sum(parameter.numel() for parameter in whole.parameters())
    assert 0.4 * full < own < 0.6 * full, (own, full)

    # The weights and gradients of the first process are those of the whole model.
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    for value in state.values():
        distributed.broadcast(value, 0)
    whole.load_state_dict(state)
    torch.manual_seed(0)
    images = torch.randn(4, 3, 50, 38)
    loss, expected = wrapper(images)['loss'], whole(images)['loss']
    torch.testing.assert_close(loss.reshape(()), expected)
    loss.sum().backward()
    expected.backward()
    wanted = dict(whole.named_parameters())
    for name, parameter in wrapper.sharded.named_parameters():
        gradient = parameter.grad.full_tensor().reshape(wanted[name].shape)
        torch.testing.assert_close(gradient, wanted[name].grad, atol=1e-5, rtol=1e-3, msg=name)

    # Processes may evaluate different numbers of images.
    with torch.no_grad():
        whole.eval()
        for _ in range(1 + 2 * rank):
            wrapper.eval()
            output = wrapper.val_step({'inputs': images})
            torch.testing.assert_close(output.reshape(()), whole(images, 'predict'))

    # Whole weights can be loaded.
    for value in state.values():
        if value.is_floating_point():
            value.mul_(0.5)
    wrapper.module.load_state_dict({**state, 'factor': state['factor'].reshape(1)})
    part = wrapper.sharded.state_dict()['factor'].full_tensor()
    assert part == state['factor'], part
    if rank == 0:
        print('same', flush=True)
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
