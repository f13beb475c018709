"""What `tools/train.py` and `tools/test.py` run, and the hooks that any mmengine config can name.

After `custom_imports = dict(imports=['swinv2_mm'])`, a config may name the classes of `swinv2_mm.engine.hooks` and
`swinv2_mm.engine.autocast` with the scope, e.g. `dict(type='swinv2_mm.InterruptHook')`. Importing this package imports
nothing; the tools import `swinv2_mm.engine.launch`.
"""
