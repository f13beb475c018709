_base_ = [
    '../_base_/models/swinv2_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/schedule_300e.py',
    '../_base_/default_runtime_cls.py',
]
