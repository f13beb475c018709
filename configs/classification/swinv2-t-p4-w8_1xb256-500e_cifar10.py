_base_ = [
    '../_base_/models/swinv2_classifier.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/schedule_500e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(
        num_classes=10,
        mean=[125.307, 122.961, 113.8575],
        std=[51.5865, 50.847, 51.255],
        to_rgb=False,  # the files hold RGB
    ),
    backbone=dict(drop_path_rate=0.1),
    head=dict(num_classes=10),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=1.0), dict(type='CutMix', alpha=1.0)]),
)
default_hooks = dict(checkpoint=dict(interval=10))
