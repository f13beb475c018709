_base_ = './swinv2-l-p4-w40-in22k-pre_upernet_16xb4-40k_ade20k-640x640.py'

# The paper's G: 80,000 iterations at batch 32 with a learning rate of 4e-5. Its weights are not
# published: load_from takes yours.
model = dict(
    backbone=dict(arch='giant', drop_path_rate=0.4, with_cp=True, init_cfg=None),
    decode_head=dict(in_channels=[512, 1024, 2048, 4096]),
    auxiliary_head=dict(in_channels=2048),
)
train_dataloader = dict(batch_size=1)
train_cfg = dict(max_iters=80000, val_interval=8000)
optim_wrapper = dict(optimizer=dict(lr=4e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=750),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=750, end=80000, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=32)
