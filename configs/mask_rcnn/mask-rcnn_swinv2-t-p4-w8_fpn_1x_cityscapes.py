_base_ = [
    '../_base_/models/mask-rcnn_swinv2_fpn.py',
    'mmdet::_base_/datasets/cityscapes_instance.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime_det.py',
]

# Official weights, ImageNet-1k; `tools/train.py --no-pretrained` starts from scratch.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
model.update(roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))
auto_scale_lr = dict(base_batch_size=8)
