_base_ = [
    '../_base_/models/retinanet_swinv2_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_box.py',
]

# Official weights, ImageNet-1k; `tools/train.py --no-pretrained` starts from scratch.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
