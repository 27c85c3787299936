"""Using a model: its held-out loss, text from it, and its export with the checks of it. Start at `evaluate.py`."""
