_base_ = './mask-rcnn_swinv2-t-p4-w8_fpn_8xb8-lsj-100e_coco.py'

# ImageNet-1k.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_base_patch4_window8_256.pth'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
