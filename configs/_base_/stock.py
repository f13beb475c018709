# What a config of another library lacks: `swinv2_mm` itself, and synchronised batch norm where there
# are several processes.
custom_imports = dict(imports=['swinv2_mm'], allow_failed_imports=False)
sync_bn = 'torch'
