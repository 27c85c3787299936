"""A step of training: forward and backward pass of micro-steps. The update is the optimizer's."""

from typing import Any

from pretrain.memory_plan.block import BlockMemory
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.head import Embedding, OutputHead
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.norm import NormMemory
from pretrain.memory_plan.setting import Setting


class Model:
    """The network of one process."""

    def __init__(self, linear: Any, setting: Setting):
        self.setting = setting
        self.embedding, self.head = Embedding(setting), OutputHead(setting)
        self.block, self.norm = BlockMemory(linear, setting), NormMemory(setting)
        model = setting.model
        self.tables = model.max_seq_len * model.head_width * (setting.compute + (8 if setting.liger else 0))
        """Rotary positions; Liger's are in fp32 and twice as wide."""
        self.layers = range(model.n_layers)

    def derived(self) -> int:
        """Of all supports."""
        return len(self.layers) * sum(linear.derived() for linear in self.block.linears)

    def kept(self) -> int:
        """Of all linears, over a step."""
        return len(self.layers) * sum(linear.kept() for linear in self.block.linears)

    def scratch(self) -> int:
        """Of the memory that all linears share."""
        return max(linear.scratch() for linear in self.block.linears)

    def micro_step(self, ledger: Ledger, gradients: Gradients) -> None:
        ledger.begin("forward")
        gradients.begin_forward()
        batch = 2 * 8 * self.setting.tokens
        with ledger.during(batch):  # tokens and targets
            self._forward(ledger)
            ledger.begin("backward")
            gradients.begin_backward()
            self._backward(ledger, gradients)
        gradients.end_backward()

    def _forward(self, ledger: Ledger) -> None:
        self.embedding.forward(ledger)
        for layer in self.layers:
            self.block.forward(ledger, saves=not self.setting.checkpointed(layer))
        stream = self.embedding.size
        self.norm.forward(ledger, True)
        self.head.forward(ledger)
        if self.norm.keeps_input:
            ledger.move(stream, "temporaries", "activations")
        else:
            ledger.free("temporaries", stream)

    def _backward(self, ledger: Ledger, gradients: Gradients) -> None:
        self.head.backward(ledger, gradients)
        self.norm.backward(ledger, gradients, "norm")
        if self.norm.keeps_input:
            ledger.free("activations", self.embedding.size)
        for layer in reversed(self.layers):
            self.block.backward(ledger, gradients, layer)
        self.embedding.backward(ledger, gradients)
