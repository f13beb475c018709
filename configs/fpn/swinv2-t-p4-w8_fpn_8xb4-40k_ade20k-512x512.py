_base_ = [
    '../_base_/models/fpn_swinv2.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/schedule_40k.py',
]

train_dataloader = dict(batch_size=4)
