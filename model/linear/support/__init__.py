"""The supports of a sparse matrix by name: which of its entries exist, and how to multiply with them."""

from typing import Any

from model.linear.support.block import BlockSparse
from model.linear.support.element import ElementSparse

SUPPORTS: dict[str, type[Any]] = {"element": ElementSparse, "block": BlockSparse}

LAYOUTS = {name: support.LAYOUT for name, support in SUPPORTS.items()}
"""The order of sparse values by support: part of the format of checkpoints."""
