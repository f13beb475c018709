# The Mask R-CNN of mask-rcnn_swinv2_fpn.py on a small backbone with small heads, for a CPU.
_base_ = './mask-rcnn_swinv2_fpn.py'

model = dict(
    backbone=dict(
        # `_delete_`: the base's arch is a name, which a dict cannot be merged into.
        arch=dict(_delete_=True, embed_dims=32, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8)),
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    # Fewer proposals save half of the time.
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)
