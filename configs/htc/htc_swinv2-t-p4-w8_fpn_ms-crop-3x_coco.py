_base_ = './htc-without-semantic_swinv2-t-p4-w8_fpn_ms-crop-3x_coco.py'
from mmengine.hub import get_config


# With the semantic branch. It learns COCO-Stuff's label maps, in coco/stuffthingmaps/train2017.
stock = get_config('mmdet::htc/htc_r50_fpn_1x_coco.py').model.roi_head.to_dict()
model = dict(
    data_preprocessor=dict(pad_seg=True),
    roi_head={key: stock[key] for key in ('semantic_roi_extractor', 'semantic_head')},
)
del stock
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales={{_base_.scales}}, keep_ratio=True)],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type='RandomChoiceResize', scales={{_base_.scales}}, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(data_prefix=dict(seg='stuffthingmaps/train2017/'), pipeline=train_pipeline)
)
