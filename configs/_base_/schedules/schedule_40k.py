# Segmentation with a light head, 40k iterations at batch 32 (8 GPUs of 4 crops): the published
# schedule of semantic FPN on PVT and PoolFormer, plus a short warm-up for AdamW's first steps.
_base_ = './adamw.py'

train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=500, end=40000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
