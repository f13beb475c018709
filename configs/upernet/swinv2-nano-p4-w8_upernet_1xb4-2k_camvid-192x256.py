# A small model on small crops, for a CPU: a real learning curve from scratch on two cores in less
# than half an hour. Whole images of 480x360 are validated, as for the T config.
_base_ = './swinv2-t-p4-w8_upernet_1xb8-10k_camvid-360x480.py'

crop_size = (192, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        # `_delete_`: the base's arch is a name, which a dict cannot be merged into.
        arch=dict(_delete_=True, embed_dims=32, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8)),
        drop_path_rate=0.0,
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64),
    auxiliary_head=dict(in_channels=128, channels=32),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1)
test_dataloader = dict(num_workers=1)

max_iters = 2000
val_interval = 400
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=200, end=max_iters, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=val_interval))
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
