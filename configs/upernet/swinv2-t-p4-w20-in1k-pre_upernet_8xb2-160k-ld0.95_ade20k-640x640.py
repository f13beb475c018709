_base_ = [
    '../_base_/models/upernet_swinv2.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/default_runtime_seg.py',
    '../_base_/schedules/schedule_160k_layer_decay.py',
]

# The paper's recipe, at a window of 20: crops are 20 tokens wide in the last stage.
# Official weights, ImageNet-1k, window 16.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window16_256.pth'
model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(window_size=20, init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
)
