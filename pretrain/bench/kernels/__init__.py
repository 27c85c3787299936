"""Benchmarks of the operations, `sparlow bench kernels`: what each is compared with, and on which inputs.

Start at run.py, which lists the operations; updates.py, linears.py and tiles.py yield their cases.
"""
