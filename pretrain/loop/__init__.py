"""The training loop. Start at `train.py`, which reads from top to bottom; `run.py` opens what it works on."""
