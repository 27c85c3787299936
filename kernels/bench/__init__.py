"""Benchmarks of the operations: `sparlow bench kernels`."""
