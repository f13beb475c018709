_base_ = './htc-without-semantic_swinv2-t-p4-w8_fpn_ms-crop-3x_coco.py'

# HTC++ as in the paper: images of 1536 x 1536 scaled by 0.1 to 2, window 32, soft-NMS, 36 epochs at
# batch 64 with a learning rate of 4e-4, a tenth of it for the backbone. The paper's HTC also has a
# semantic branch. Weights of ImageNet-22k, trained at window 12, in the last stage at 6.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_large_patch4_window12_192_22k.pth'
image_size = (1536, 1536)
model = dict(
    backbone=dict(
        arch='large',
        window_size=32,
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
)
auto_scale_lr = dict(base_batch_size=64)
