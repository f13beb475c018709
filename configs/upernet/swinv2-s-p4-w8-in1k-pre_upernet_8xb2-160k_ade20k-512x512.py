_base_ = './swinv2-t-p4-w8-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_small_patch4_window8_256.pth'
model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint=checkpoint)))
