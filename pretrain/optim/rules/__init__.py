"""Matrix optimizers by name: each a rule with its configuration, whose defaults are the paper's for 60M parameters.

A rule is one file and one line here; a method that only chooses otherwise is a subclass with its own `Config`.
"""

from pretrain.optim.rules.apollo import Apollo, ApolloMini
from pretrain.optim.rules.base import Rule
from pretrain.optim.rules.fira import Fira
from pretrain.optim.rules.frugal import Frugal
from pretrain.optim.rules.galore import GaLore, GaLore8bit, GaLoreAdafactor, GoLore, QGaLore, Sara
from pretrain.optim.rules.gradnormlorp import GradNormLoRP
from pretrain.optim.rules.ldadam import LDAdam
from pretrain.optim.rules.muon import Muon
from pretrain.optim.rules.normuon import NorMuon
from pretrain.optim.rules.online_subspace import OnlineSubspace
from pretrain.optim.rules.scale import Scale
from pretrain.optim.rules.sinkgd import SinkGD
from pretrain.optim.rules.subtrack import SubTrack

PRESETS: dict[str, type[Rule]] = {
    "apollo": Apollo,
    "apollo_mini": ApolloMini,
    "fira": Fira,
    "frugal": Frugal,
    "galore_adamw": GaLore,
    "galore_adamw8bit": GaLore8bit,
    "galore_adafactor": GaLoreAdafactor,
    "golore": GoLore,
    "gradnormlorp": GradNormLoRP,
    "ldadam": LDAdam,
    "muon": Muon,
    "normuon": NorMuon,
    "online_subspace": OnlineSubspace,
    "q_galore": QGaLore,
    "sara": Sara,
    "scale": Scale,
    "sinkgd": SinkGD,
    "subtrack": SubTrack,
}
