_base_ = './mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco.py'

# The official weights have no offsets: these start at zero, so the model starts as the plain one.
model = dict(backbone=dict(use_deformable_block=True))
