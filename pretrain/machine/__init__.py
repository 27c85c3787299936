"""Processes and devices: ranks, signals, memory, the terminal, faults on purpose. Start at `distributed.py`."""
