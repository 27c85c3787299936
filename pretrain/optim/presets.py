"""Published methods by name: each a MatrixConfig with its rule and the paper's defaults (those for 60M parameters)."""

from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.rules.galore import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit

PRESETS: dict[str, type[MatrixConfig]] = {
    "galore_adamw": GaLoreAdamW,
    "galore_adamw8bit": GaLoreAdamW8bit,
    "galore_adafactor": GaLoreAdafactor,
}
