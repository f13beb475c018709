# Detection without masks.
_base_ = './default_runtime_det.py'

default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
