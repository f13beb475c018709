_base_ = [
    '../_base_/models/fpn_swinv2.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/schedule_40k.py',
]

# Official weights, ImageNet-1k; `tools/train.py --no-pretrained` starts from scratch.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window8_256.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))

train_dataloader = dict(batch_size=4)
