_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/schedule_160k.py',
]

# Official weights, ImageNet-1k. The last map has stride 32; the head's own backbone has 8.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        drop_path_rate=0.3,
        out_indices=(2, 3),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=768, in_index=1, num_classes=150, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=384, in_index=0, num_classes=150, norm_cfg=norm_cfg),
)
