"""RMSNorm: one kernel on a GPU; on a CPU a chain of operations in fp32, each of which keeps what it needs."""

from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.setting import Setting


class NormMemory:
    """Over tensors of the residual stream."""

    def __init__(self, setting: Setting):
        self.dim, self.fused = setting.model.dim, setting.cuda
        self.size = setting.activation(setting.model.dim)
        self.wide = 4 * setting.tokens * setting.model.dim
        self.root = 4 * setting.tokens
        self.copies = setting.compute < 4
        """Whether the fp32 chain begins with a copy."""
        self.keeps_input = setting.cuda or not self.copies
        """Whether the input itself is kept for the backward pass."""
        fused = self.root
        chain = self.wide + self.root + (self.wide if self.copies else 0)
        self.saved = fused if self.fused else chain

    def forward(self, ledger: Ledger, saves: bool) -> None:
        """Takes its output as a temporary, and keeps `saved`."""
        if not self.fused:
            ledger.touch(self.wide * (2 if self.copies else 1))
        ledger.take("activations", self.saved)
        if not self.fused and self.copies:
            ledger.touch(self.wide + self.size)
        ledger.take("temporaries", self.size)
        if not saves:
            ledger.free("activations", self.saved)

    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        """The gradient of the output, a temporary, becomes that of the input; the input is freed by the caller."""
        if self.fused:
            ledger.take("temporaries", self.size)
            ledger.free("temporaries", self.size)
            ledger.free("activations", self.saved)
            gradients.receive(f"{name}.weight", self.dim)
            return
        wide = self.wide
        extra = wide if self.copies else 0
        ledger.take("temporaries", extra)
        ledger.free("temporaries", self.size if self.copies else 0)
        ledger.touch(2 * wide)
        ledger.free("activations", wide)  # the normed fp32 values
        ledger.touch(2 * wide)  # beside it the gradient on its way to x, which takes its place
        gradients.receive(f"{name}.weight", self.dim)
        ledger.touch(4 * wide)
        ledger.free("activations", self.root + extra)
        ledger.touch(2 * wide)
        if self.copies:
            ledger.take("temporaries", self.size)
            ledger.free("temporaries", wide)
