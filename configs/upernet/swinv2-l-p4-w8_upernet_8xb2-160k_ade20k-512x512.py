_base_ = './swinv2-t-p4-w8_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='large'),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
