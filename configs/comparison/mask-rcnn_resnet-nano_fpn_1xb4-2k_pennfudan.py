# A ResNet in place of the SwinV2, with the same widths of the stages and about as many multiply-adds.
_base_ = '../mask_rcnn/mask-rcnn_swinv2-nano-p4-w8_fpn_1xb4-2k_pennfudan.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=18,
        base_channels=32,
        norm_eval=False,
        norm_cfg=dict(type='BN'),
    )
)
