_base_ = [
    'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
    '../_base_/stock.py',
]

# Maps of strides 8, 16 and 32, and RGB images for the official weights of ImageNet-1k. `sync_bn`
# synchronises batch norms where there are several processes.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    neck=dict(in_channels=[192, 384, 768], norm_cfg=dict(type='BN')),
    bbox_head=dict(norm_cfg=dict(type='BN')),
)
optim_wrapper = dict(constructor='swinv2_mm.LayerDecayOptimWrapperConstructor')
auto_scale_lr = dict(base_batch_size=256)
