_base_ = './mask2former_swinv2-t-p4-w8_8xb2-lsj-50e_coco.py'

# ImageNet-22k: there is no L of 1k. Trained at window 12, in the last stage at 6.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_large_patch4_window12_192_22k.pth'
model = dict(
    backbone=dict(arch='large', window_size=12, init_cfg=dict(checkpoint=checkpoint)),
    panoptic_head=dict(in_channels=[192, 384, 768, 1536]),
)
