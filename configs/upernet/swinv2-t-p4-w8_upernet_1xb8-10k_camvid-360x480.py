# From scratch on one GPU: batch 8, 10k iterations.
_base_ = [
    '../_base_/models/upernet_swinv2.py',
    '../_base_/datasets/camvid.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/adamw.py',
]

model = dict(
    data_preprocessor=dict(size=(360, 480)),
    backbone=dict(drop_path_rate=0.2),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
)

max_iters = 10000
val_interval = 1000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
optim_wrapper = dict(optimizer=dict(lr=3e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=500, end=max_iters, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=val_interval))
auto_scale_lr = dict(enable=False, base_batch_size=8)
