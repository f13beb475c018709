# What detection and segmentation share; configs inherit `default_runtime_det.py` or
# `default_runtime_seg.py`.

# Registers the backbone, and stands in for mmcv's compiled operators where there are none: all that
# another library's tools/train.py needs to run these configs.
custom_imports = dict(imports=['swinv2_mm'], allow_failed_imports=False)

# Heads are written with BN. A distributed Runner turns every BN into SyncBN, on one device it stays
# BN: a config needs no change between eight GPUs and one CPU.
sync_bn = 'torch'

log_level = 'INFO'
load_from = None
resume = False
