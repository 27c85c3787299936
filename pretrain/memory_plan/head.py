"""The two ends of the network: token embedding, and output head with the chunked loss."""

from kernels.linear_cross_entropy.in_torch import LOGITS_BYTES, MIN_CHUNK, PART_ROWS
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.setting import Setting


class Embedding:
    """Rows are looked up in the parameter's precision, then cast."""

    def __init__(self, setting: Setting):
        self.setting, self.numel = setting, setting.model.vocab_size * setting.model.dim
        self.size = setting.activation(setting.model.dim)
        self.rows = setting.tokens * setting.model.dim * setting.param if setting.casts else 0

    def forward(self, ledger: Ledger) -> None:
        with ledger.during(self.rows):
            ledger.take("temporaries", self.size)

    def backward(self, ledger: Ledger, gradients: Gradients) -> None:
        """The gradient of the first block's input is alive; it ends here."""
        with ledger.during(self.rows):
            if self.rows:
                ledger.free("temporaries", self.size)
            gradients.receive("tok_embeddings.weight", self.numel)
        if not self.rows:
            ledger.free("temporaries", self.size)


class OutputHead:
    """kernels/linear_cross_entropy: the gradients are formed chunk by chunk in the forward pass."""

    def __init__(self, setting: Setting):
        model, b = setting.model, setting.compute
        self.setting, self.numel = setting, model.vocab_size * model.dim
        self.name = "tok_embeddings.weight" if model.tie_embeddings else "lm_head.weight"
        self.hidden = setting.activation(model.dim)
        chunk_tokens = max(MIN_CHUNK, LOGITS_BYTES // (4 * model.vocab_size))
        chunk = min(chunk_tokens, setting.tokens)
        self.logits = 4 * chunk * model.vocab_size
        # Narrow logits: those of the product or of the last chunk, and their gradient.
        narrow = b * chunk * model.vocab_size if b < 4 else 0
        several = setting.tokens > chunk
        self.part = model.dim * min(PART_ROWS, model.vocab_size)
        self.scratch = max(narrow * (2 if several else 1), narrow + b * self.part)
        self.copy = b * self.numel if setting.casts else 0
        self.kept = self.hidden + 4 * self.numel

    def forward(self, ledger: Ledger) -> None:
        """The last hidden state is a temporary, and goes."""
        with ledger.during(self.copy):
            ledger.take("loss", self.kept)
            with ledger.during(self.logits, "loss"):
                ledger.touch(self.scratch)
        ledger.free("temporaries", self.hidden)

    def backward(self, ledger: Ledger, gradients: Gradients) -> None:
        """Takes the gradient of the last hidden state as a temporary."""
        is_narrow = self.setting.param < 4
        scaled = 4 * (self.part if is_narrow else self.numel)
        ledger.take("temporaries", self.hidden)
        narrow = self.setting.param * self.numel if is_narrow else 0
        with ledger.during(narrow):
            ledger.touch(scaled)
            ledger.free("loss", self.kept)
        gradients.receive(self.name, self.numel)
