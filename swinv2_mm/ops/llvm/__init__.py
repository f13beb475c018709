"""Tools for CPU kernels: LLVM IR, just-in-time compilation and threads."""
