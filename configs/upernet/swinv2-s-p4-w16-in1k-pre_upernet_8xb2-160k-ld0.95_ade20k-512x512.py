_base_ = './swinv2-t-p4-w16-in1k-pre_upernet_8xb2-160k-ld0.95_ade20k-512x512.py'

# ImageNet-1k.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_small_patch4_window16_256.pth'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint=checkpoint)),
)
