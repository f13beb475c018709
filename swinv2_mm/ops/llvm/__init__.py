"""What kernels for CPUs need: writing them in LLVM's language, compiling them when they are first called, threads."""
