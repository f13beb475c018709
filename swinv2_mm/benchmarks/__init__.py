"""Time and memory beside the same model of other libraries; `tools/analysis_tools/` runs it.

Every contestant lives in a process of its own (`worker`), the main process lets them run one after another in
interleaved rounds (`rounds`), and only compares what was measured in the same round (`summary`).
"""
