"""The configuration of a run: TOML data, strictly validated; nothing in it is ignored.

A key is declared in `tables`, or beside the linear or rule that it is for, checked against others in `checks`, and read
where it acts. `load` makes a `schema.Config` of a file and a command line; `explain` says what is wrong with them.
"""

from pretrain.config.load import load_config, load_recorded

__all__ = ["load_config", "load_recorded"]
