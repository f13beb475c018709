_base_ = [
    '../_base_/models/upernet_swinv2.py',
    'mmseg::_base_/datasets/coco-stuff164k.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/schedule_160k.py',
]

# Official weights, ImageNet-1k.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    decode_head=dict(num_classes=171),
    auxiliary_head=dict(num_classes=171),
)
train_dataloader = dict(batch_size=2)
