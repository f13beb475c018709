# AdamW as every config here uses it; schedules set `lr` and `weight_decay`. `fused`: one kernel for
# all parameters, on a CPU as on a GPU.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    # No decay for norms and biases, in backbone and heads alike. The attention's `q_bias` and
    # `v_bias` are bare parameters, which `bias_decay_mult` does not see. `cpb_mlp` (position bias)
    # and `logit_scale` (attention temperature) are SwinV2's own: zero is no natural value for them.
    # `meta_mlp` and `tau` are the same in SwinTransformerV2CR.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(
            q_bias=dict(decay_mult=0.0),
            v_bias=dict(decay_mult=0.0),
            cpb_mlp=dict(decay_mult=0.0),
            logit_scale=dict(decay_mult=0.0),
            meta_mlp=dict(decay_mult=0.0),
            tau=dict(decay_mult=0.0),
        ),
    ),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
