# What detection and segmentation share; configs inherit `default_runtime_det.py` or
# `default_runtime_seg.py`.

# Register the backbone and the hooks, and provide mmcv's operators where they are not compiled: all that
# another library's tools/train.py needs to run these configs.
custom_imports = dict(imports=['swinv2_mm'], allow_failed_imports=False)

# See swinv2_mm.engine.
default_hooks = dict(
    bad_samples=dict(type='swinv2_mm.BadSampleHook'),
    batch_size=dict(type='swinv2_mm.BatchSizeHook'),
    checkpoint=dict(type='swinv2_mm.AtomicCheckpointHook', interval=1),
    checkpoint_match=dict(type='swinv2_mm.CheckpointMatchHook'),
    curves=dict(type='swinv2_mm.CurvesHook'),
    head_outputs=dict(type='swinv2_mm.HeadOutputsHook'),
    heartbeat=dict(type='swinv2_mm.HeartbeatHook'),
    interrupt=dict(type='swinv2_mm.InterruptHook'),
    invalid_loss=dict(type='swinv2_mm.InvalidLossHook'),
    loader_workers=dict(type='swinv2_mm.LoaderWorkersHook'),
    metrics_file=dict(type='swinv2_mm.MetricsFileHook'),
    resume_state=dict(type='swinv2_mm.ResumeStateHook'),
    sample_pictures=dict(type='swinv2_mm.SamplePicturesHook'),
    winograd=dict(type='swinv2_mm.WinogradHook'),
)

# Heads are written with BN. A distributed Runner turns every BN into SyncBN, on one device it stays
# BN: a config needs no change between eight GPUs and one CPU.
sync_bn = 'torch'

log_level = 'INFO'
load_from = None
resume = False
