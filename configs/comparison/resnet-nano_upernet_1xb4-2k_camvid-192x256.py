# A ResNet in place of the SwinV2, with the same widths of the stages and about as many multiply-adds.
_base_ = '../upernet/swinv2-nano-p4-w8_upernet_1xb4-2k_camvid-192x256.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg.ResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        norm_cfg=dict(type='BN'),
    )
)
