# MMSegmentation's Swin V1 in place of the SwinV2, with the same widths, depths and window.
_base_ = '../upernet/swinv2-nano-p4-w8_upernet_1xb4-2k_camvid-192x256.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg.SwinTransformer',
        embed_dims=32,
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 4, 8),
        window_size=8,
        drop_path_rate=0.0,
    )
)
no_decay = {'relative_position_bias_table': dict(decay_mult=0.0)}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=no_decay))
