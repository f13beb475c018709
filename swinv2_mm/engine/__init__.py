"""What `tools/train.py` and `tools/test.py` run, and the hooks that any mmengine config can name.

After `custom_imports = dict(imports=['swinv2_mm'])`, a config may name them with the scope, e.g.
`dict(type='swinv2_mm.InterruptHook')`. Importing this package imports nothing.
"""
