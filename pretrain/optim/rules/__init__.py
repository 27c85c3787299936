"""Rules by name. A rule is one file and one line here."""

from pretrain.optim.rules.base import Rule
from pretrain.optim.rules.galore import GaLore

RULES: dict[str, type[Rule]] = {
    "galore": GaLore,
}
