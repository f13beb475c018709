_base_ = './cascade-mask-rcnn_swinv2-t-p4-w8_fpn_ms-crop-3x_coco.py'

# The paper's recipe: window 16, weights of window 16.
checkpoint = 'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/swinv2_tiny_patch4_window16_256.pth'
model = dict(backbone=dict(window_size=16, init_cfg=dict(checkpoint=checkpoint)))
