"""A Hugging Face folder of a LLaMA -> the first checkpoint of a run. Start at `run.py`."""
