"""Benchmarks against the same models of other libraries, run by `tools/`. Part of the checkout, not of the package.

Each contestant has a process (`worker`). The main process runs them in interleaved rounds (`rounds`) and compares
measurements of the same round (`results`).
"""
