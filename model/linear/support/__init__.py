"""The supports of a sparse matrix by name: which of its entries exist, and how to multiply with them."""

from model.linear.support.element import ElementSupport

SUPPORTS: dict[str, type[ElementSupport]] = {"element": ElementSupport}
