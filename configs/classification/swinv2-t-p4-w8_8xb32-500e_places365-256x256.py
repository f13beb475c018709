_base_ = [
    '../_base_/models/swinv2_classifier.py',
    '../_base_/datasets/places365.py',
    '../_base_/schedules/schedule_500e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    data_preprocessor=dict(num_classes=365),
    backbone=dict(drop_path_rate=0.1),
    head=dict(num_classes=365),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=1.0), dict(type='CutMix', alpha=1.0)]),
)
