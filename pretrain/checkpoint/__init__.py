"""Checkpoints: safetensors and JSON, whole tensors by name, committed so that a kill at any moment loses nothing.

A checkpoint is a folder `step-XXXXXXXX` that holds a `manifest.json` (sizes and sha256 of every other file). It is
written under a temporary name, synced to disk, and renamed as the last act; what has not been renamed does not exist.
"""
