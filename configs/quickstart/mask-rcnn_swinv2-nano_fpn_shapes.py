# A Mask R-CNN small enough to learn from scratch in a few minutes on two cores of a CPU. Against the
# base: a tiny backbone, 64 channels everywhere, BN in the heads (they start from nothing), anchors and
# levels for objects of 16 to 80 pixels, fewer samples and proposals for pictures with two to five objects.
_base_ = [
    '../_base_/models/mask-rcnn_swinv2_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/adamw.py',
    '../_base_/default_runtime_det.py',
]

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        # `_delete_`: the base's arch is a name, which a dict cannot be merged into.
        arch=dict(_delete_=True, embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
        window_size=[8, 8, 8, 4],
        drop_path_rate=0.0,
    ),
    neck=dict(
        in_channels=[32, 64, 128, 256],
        out_channels=64,
        num_outs=4,
        norm_cfg=norm_cfg,
        act_cfg=dict(type='ReLU'),
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=2,
            ratios=[1.0],
            strides=[4, 8, 16, 32],
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=norm_cfg,
            num_classes=4,
            reg_class_agnostic=True,
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=32,
            num_classes=4,
            class_agnostic=True,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(pos_iou_thr=0.6), sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=60),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60),
        rcnn=dict(max_per_img=20),
    ),
)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=5)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True, eta_min=1e-5),
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=5, max_keep_ckpts=1, save_best=None),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
