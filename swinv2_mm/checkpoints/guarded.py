"""Call `guard_mmengine` on import: `custom_imports = dict(imports=['swinv2_mm', 'swinv2_mm.checkpoints.guarded'])`."""

from swinv2_mm.checkpoints.guard import guard_mmengine

guard_mmengine()
