_base_ = './swinv2-l-p4-w20-in22k-pre_upernet_8xb2-160k-ld0.95_ade20k-640x640.py'

# The paper's L: window 40, 40,000 iterations at batch 64 with a learning rate of 6e-5.
model = dict(backbone=dict(window_size=40))
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=6e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=375),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=375, end=40000, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=64)
