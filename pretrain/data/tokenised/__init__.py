"""Corpora that others have already tokenised: files of ids in the usual forms, copied into ours. Start at `copy.py`."""
