_base_ = './swinv2-t-p4-w20-in1k-pre_upernet_8xb2-160k-ld0.95_ade20k-640x640.py'

# ImageNet-22k: there is no L of 1k. Trained at window 12, in the last stage at 6.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_large_patch4_window12_192_22k.pth'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
