"""Benchmarks beside the same models of other libraries; `tools/` runs them. Part of the checkout, not of the package.

Each contestant has a process (`worker`). The main process lets them run in turn, in interleaved rounds (`rounds`), and
compares what was measured in the same round (`results`).
"""
