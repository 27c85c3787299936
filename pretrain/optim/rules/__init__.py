"""Rules by name. A rule is one file and one line here."""

from pretrain.optim.rules.apollo import ApolloRule
from pretrain.optim.rules.base import Rule
from pretrain.optim.rules.fira import Fira
from pretrain.optim.rules.frugal import FrugalRule
from pretrain.optim.rules.galore import GaLore
from pretrain.optim.rules.gradnormlorp import GradNormLoRP
from pretrain.optim.rules.ldadam import LDAdam
from pretrain.optim.rules.muon import MuonRule
from pretrain.optim.rules.online_subspace import OnlineSubspace
from pretrain.optim.rules.subtrack import SubTrack

RULES: dict[str, type[Rule]] = {
    "apollo": ApolloRule,
    "fira": Fira,
    "frugal": FrugalRule,
    "galore": GaLore,
    "gradnormlorp": GradNormLoRP,
    "ldadam": LDAdam,
    "muon": MuonRule,
    "online_subspace": OnlineSubspace,
    "subtrack": SubTrack,
}
