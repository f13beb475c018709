_base_ = './dino-5scale_swinv2-l-p4-w12_8xb2-12e_coco.py'

num_levels = 4
model = dict(
    num_feature_levels=num_levels,
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[384, 768, 1536], num_outs=num_levels),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=num_levels))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=num_levels))),
)
