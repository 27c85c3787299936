"""Benchmarks of the operations, `sparlow bench kernels`: what each is compared with, and on which inputs.

Start at run.py, which lists the operations; attention.py, eight_bit.py, linears.py, tiles.py and updates.py yield their
cases.
"""
