# RetinaNet on SwinV2-T, for COCO's 80 classes. Its FPN starts at stride 8.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
