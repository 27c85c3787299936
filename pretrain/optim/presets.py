"""Published methods by name: each a MatrixConfig with its rule and the paper's defaults (those for 60M parameters)."""

from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.rules.apollo import Apollo, ApolloMini
from pretrain.optim.rules.fira import FiraAdamW
from pretrain.optim.rules.frugal import Frugal
from pretrain.optim.rules.galore import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit
from pretrain.optim.rules.golore import GoLore
from pretrain.optim.rules.gradnormlorp import GradNormLoRPAdamW
from pretrain.optim.rules.ldadam import LDAdamW
from pretrain.optim.rules.muon import Muon
from pretrain.optim.rules.online_subspace import OnlineSubspaceDescent
from pretrain.optim.rules.q_galore import QGaLore
from pretrain.optim.rules.sara import Sara
from pretrain.optim.rules.subtrack import SubTrackAdamW

PRESETS: dict[str, type[MatrixConfig]] = {
    "apollo": Apollo,
    "apollo_mini": ApolloMini,
    "fira": FiraAdamW,
    "frugal": Frugal,
    "galore_adamw": GaLoreAdamW,
    "galore_adamw8bit": GaLoreAdamW8bit,
    "galore_adafactor": GaLoreAdafactor,
    "golore": GoLore,
    "gradnormlorp": GradNormLoRPAdamW,
    "ldadam": LDAdamW,
    "muon": Muon,
    "online_subspace": OnlineSubspaceDescent,
    "q_galore": QGaLore,
    "sara": Sara,
    "subtrack": SubTrackAdamW,
}
