"""Benchmarks: this code against a peer in one process, in alternating short slices, reported as ratios.

`sparlow bench` runs train.py, optimizers.py and kernels/; timing.py and slices.py say how time is taken. gpu_check.py
is what launch/gpu_check.sh runs on a GPU, and the other gpu_ files are its parts.
"""
