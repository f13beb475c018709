# AdamW as every config here uses it; schedules set `lr` and `weight_decay`. `fused`: one kernel for
# all parameters, on a CPU as on a GPU. Norms, biases, position bias and temperature of the attention
# do not decay; see swinv2_mm/engine/optimizer.py.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='swinv2_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
