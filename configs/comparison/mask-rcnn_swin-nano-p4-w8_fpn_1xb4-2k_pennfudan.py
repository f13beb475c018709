# MMDetection's Swin V1 in place of the SwinV2, with the same widths, depths and window.
_base_ = '../mask_rcnn/mask-rcnn_swinv2-nano-p4-w8_fpn_1xb4-2k_pennfudan.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdet.SwinTransformer',
        embed_dims=32,
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 4, 8),
        window_size=8,
        drop_path_rate=0.1,
    )
)
no_decay = {'relative_position_bias_table': dict(decay_mult=0.0)}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=no_decay))
