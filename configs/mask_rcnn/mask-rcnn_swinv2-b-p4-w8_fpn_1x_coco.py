_base_ = './mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco.py'

checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_base_patch4_window8_256.pth'
model = dict(
    # As S: the 0.5 of B's pre-training belongs to 300 epochs, 12 are too few for so much noise.
    backbone=dict(arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
