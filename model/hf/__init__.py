"""To and from a Hugging Face LLaMA folder, without transformers."""

from model.hf.export import export_folder
from model.hf.load import load_folder

__all__ = ["export_folder", "load_folder"]
