# Detection with large-scale jittering, 100 epochs at batch 64 (8 GPUs of 8 images).
_base_ = './schedule_1x.py'

train_cfg = dict(max_epochs=100, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=100, by_epoch=True, milestones=[88, 96], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=64)
