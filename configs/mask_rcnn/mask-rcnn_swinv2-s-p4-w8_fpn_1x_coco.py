_base_ = './mask-rcnn_swinv2-t-p4-w8_fpn_1x_coco.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
