# A UperNet small enough to train on two cores of a CPU in some minutes. It tells shapes from ground well and the
# four kinds of shape apart only partly: they would take a longer schedule.
_base_ = [
    '../_base_/models/upernet_swinv2.py',
    '../_base_/datasets/shapes_semantic.py',
    '../_base_/schedules/adamw.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        # `_delete_`: the base's arch is a name, which a dict cannot be merged into.
        arch=dict(_delete_=True, embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
        window_size=[8, 8, 8, 4],
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        pool_scales=(1, 2),
        channels=48,
        dropout_ratio=0.0,
        num_classes=5,
    ),
    auxiliary_head=None,
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=600, val_interval=300)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=600, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
