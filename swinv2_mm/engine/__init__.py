"""What `tools/train.py` and `tools/test.py` do: checks before the start, a quiet console, metrics on disk.

Importing this package imports nothing; the tools import `swinv2_mm.engine.launch`.
"""
