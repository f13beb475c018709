_base_ = './htc-without-semantic_swinv2-l-p4-w32_fpn_16xb4-lsj-1536-3x_coco.py'

# The paper's 3 billion parameters: 45,000 iterations at batch 96 with a learning rate of 6e-4, after
# training on Objects365. Its weights are not published: load_from takes yours. For many GPUs only,
# see docs/gpu.md.
model = dict(
    backbone=dict(arch='giant', init_cfg=None), neck=dict(in_channels=[512, 1024, 2048, 4096])
)
train_dataloader = dict(
    batch_size=2, sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True)
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=45000, val_interval=5000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR', by_epoch=False, begin=0, end=45000, milestones=[34000, 41000], gamma=0.1
    ),
]
optim_wrapper = dict(optimizer=dict(lr=6e-4))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=96)
