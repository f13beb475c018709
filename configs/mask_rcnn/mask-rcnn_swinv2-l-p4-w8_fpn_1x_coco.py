_base_ = './mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco.py'

model = dict(
    # The paper fine-tunes L with 0.3 (UperNet on ADE20K); it states no rate for detection.
    backbone=dict(arch='large', drop_path_rate=0.3),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
