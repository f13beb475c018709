# A classifier that learns the handwritten digits from scratch on a CPU. Its backbone has the architecture of the
# quickstart's detector and segmenter, which can start from its weights.
_base_ = [
    '../_base_/models/swinv2_classifier.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        # `_delete_`: the base's arch is a name, which a dict cannot be merged into.
        arch=dict(_delete_=True, embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
        drop_path_rate=0.0,
    ),
    head=dict(in_channels=256, num_classes=10),
    train_cfg=None,  # mixed digits are no digits, and 1437 of them are learnt without
)

max_epochs = 30
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, fused=True),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=2,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    logger=dict(interval=45),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=32)
