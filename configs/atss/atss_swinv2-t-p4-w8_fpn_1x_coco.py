_base_ = [
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_box.py',
]
from mmengine.hub import get_config


# MMDetection's ATSS; its FPN starts at stride 8. Official weights, ImageNet-1k.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = get_config('mmdet::atss/atss_r50_fpn_1x_coco.py').model.to_dict()
model['backbone'] = dict(
    type='swinv2_mm.SwinTransformerV2',
    arch='tiny',
    window_size=8,
    drop_path_rate=0.2,
    out_indices=(1, 2, 3),
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)
model['neck'].update(in_channels=[192, 384, 768], start_level=0)
