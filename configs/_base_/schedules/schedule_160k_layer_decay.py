# The paper's recipe on ADE20K: a learning rate of 4e-5 at batch 16, decreasing by 0.95 per layer
# towards the input.
_base_ = './schedule_160k.py'

optim_wrapper = dict(
    optimizer=dict(lr=4e-5, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.95)
)
