_base_ = './swinv2-s-p4-w20-in1k-pre_upernet_8xb2-160k-ld0.95_ade20k-640x640.py'

model = dict(backbone=dict(window_size=32))
