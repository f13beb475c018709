# What detection and segmentation share; configs inherit `default_runtime_det.py` or
# `default_runtime_seg.py`.

# Register the backbone and the hooks, and provide mmcv's operators where they are not compiled: all that
# another library's tools/train.py needs to run these configs.
custom_imports = dict(imports=['swinv2_mm'], allow_failed_imports=False)

# See swinv2_mm.engine.hooks.
default_hooks = dict(
    batch_size=dict(type='swinv2_mm.BatchSizeHook'),
    checkpoint_match=dict(type='swinv2_mm.CheckpointMatchHook'),
    interrupt=dict(type='swinv2_mm.InterruptHook'),
    invalid_loss=dict(type='swinv2_mm.InvalidLossHook'),
    metrics_file=dict(type='swinv2_mm.MetricsFileHook'),
)

# Heads are written with BN. A distributed Runner turns every BN into SyncBN, on one device it stays
# BN: a config needs no change between eight GPUs and one CPU.
sync_bn = 'torch'

log_level = 'INFO'
load_from = None
resume = False
