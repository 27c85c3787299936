"""The configuration of a run: TOML data, strictly validated; nothing in it is ignored."""

from pretrain.config.load import load_config, load_recorded

__all__ = ["load_config", "load_recorded"]
