"""Benchmarks: this code against a peer in one process, in alternating short slices, reported as ratios."""
