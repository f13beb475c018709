"""Tensor operations: no modules, no registries, torch only."""
