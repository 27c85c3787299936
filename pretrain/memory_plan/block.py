"""One transformer block, forward and backward, in the order of model/transformer.py."""

from typing import Any

from model.config import ModelConfig
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.linear import LinearMemory, linear_memory
from pretrain.memory_plan.norm import NormMemory
from pretrain.memory_plan.setting import Setting


class BlockMemory:
    """Every block is alike. Before and after `forward` and `backward`, one tensor of the residual stream, or its
    gradient, is alive as a temporary; `forward` renames it where it is kept.
    """

    def __init__(self, linear: Any, setting: Setting):
        model: ModelConfig = setting.model
        q_width, kv_width = model.n_heads * model.head_width, model.kv_heads * model.head_width

        def make(n_in: int, n_out: int) -> LinearMemory:
            return linear_memory(linear, n_in, n_out, setting)

        self.setting = setting
        self.q, self.k, self.v = make(model.dim, q_width), make(model.dim, kv_width), make(model.dim, kv_width)
        self.o = make(q_width, model.dim)
        self.gate, self.up = make(model.dim, model.ffn_dim), make(model.dim, model.ffn_dim)
        self.down = make(model.ffn_dim, model.dim)
        self.linears = [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]
        self.norm = NormMemory(setting)
        self.D, self.Q, self.KV = (
            setting.activation(model.dim),
            setting.activation(q_width),
            setting.activation(kv_width),
        )
        self.F = setting.activation(model.ffn_dim)
        self.lse = 4 * setting.tokens * model.n_heads
        """Logarithms of the sums of attention's softmax."""
        # PyTorch's SwiGLU keeps silu(gate) for the product, Liger's computes it again.
        self.inner = 3 * self.F if setting.liger else 4 * self.F
        # What flash attention's backward pass adds up dq in, on a GPU.
        self.wide_dq = 4 * setting.tokens * q_width if setting.cuda and setting.compute < 4 else 0

    def forward(self, ledger: Ledger, saves: bool = True) -> None:
        """The input becomes a kept activation where the block is to be recomputed, or its norm keeps it."""
        self._attention(ledger, saves)
        self._feed_forward(ledger, saves)
        self._end(ledger, saves)

    def _attention(self, ledger: Ledger, saves: bool) -> None:
        """Ends with both residual tensors alive, as temporaries."""
        self.norm.forward(ledger, saves)  # its output is alive as a temporary
        self.q.forward(ledger, saves)
        self.k.forward(ledger, saves)
        if not self.setting.liger:  # which turns in place
            ledger.touch(self.Q + self.KV)
        self.v.forward(ledger, saves)
        ledger.take("temporaries", self.Q + self.lse)
        self.o.forward(ledger, saves)
        ledger.touch(self.D)  # of o_proj's output and the sum, the sum stays
        kept = self.D + 2 * self.Q + 2 * self.KV + self.lse  # normed, q, k, v, attention's output
        self._settle(ledger, kept, saves)

    def _feed_forward(self, ledger: Ledger, saves: bool, again: bool = False) -> None:
        """Ends with the output alive as well, unless it is computed `again`."""
        self.norm.forward(ledger, saves)
        self.gate.forward(ledger, saves)
        self.up.forward(ledger, saves)
        ledger.take("temporaries", self.inner - 2 * self.F)
        unkept = 0 if saves else self.inner - 3 * self.F  # silu(gate), which only its gradient needs any longer
        ledger.free("temporaries", unkept)
        if again:
            self.down.recompute(ledger)
        else:
            self.down.forward(ledger, saves)
            ledger.touch(self.D)
        self._settle(ledger, self.D + self.inner - unkept, saves)

    def _settle(self, ledger: Ledger, kept: int, saves: bool) -> None:
        if saves:
            ledger.move(kept, "temporaries", "activations")
        else:
            ledger.free("temporaries", kept)

    def _end(self, ledger: Ledger, saves: bool) -> None:
        """Input, middle and output of the residual stream are alive; the output stays."""
        if saves and self.norm.keeps_input:
            ledger.move(2 * self.D, "temporaries", "activations")
        elif saves:
            ledger.free("temporaries", 2 * self.D)
        else:  # the input is kept to begin again from it
            ledger.move(self.D, "temporaries", "activations")
            ledger.free("temporaries", self.D)

    def backward(self, ledger: Ledger, gradients: Gradients, layer: int) -> None:
        """The gradient of the output is alive; in the end that of the input."""
        if self.setting.checkpointed(layer):
            self._recompute(ledger)
        self._feed_forward_backward(ledger, gradients, f"layers.{layer}")
        self._attention_backward(ledger, gradients, f"layers.{layer}")
        if self.setting.checkpointed(layer) and not self.norm.keeps_input:
            ledger.free("activations", self.D)

    def _recompute(self, ledger: Ledger) -> None:
        """Up to the last tensor that is needed, the input of down_proj. The block's own input stays till its end."""
        ledger.move(self.D, "activations", "temporaries")
        self._attention(ledger, True)
        self._feed_forward(ledger, True, again=True)
        if self.norm.keeps_input:
            ledger.move(2 * self.D, "temporaries", "activations")
        else:
            ledger.move(self.D, "temporaries", "activations")
            ledger.free("temporaries", self.D)

    def _feed_forward_backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        D, F = self.D, self.F
        self.down.backward(ledger, gradients, f"{name}.feed_forward.down_proj")
        ledger.free("activations", F)  # its input
        if self.setting.liger:  # gradients in the place of gate and up
            ledger.free("temporaries", F)
            ledger.move(2 * F, "activations", "temporaries")
        else:
            ledger.take("temporaries", 2 * F)  # of silu(gate) and up
            ledger.free("temporaries", F)
            ledger.free("activations", 2 * F)  # silu(gate), up
            ledger.take("temporaries", F)  # of gate
            ledger.free("temporaries", F)
            ledger.free("activations", F)
        self.up.backward(ledger, gradients, f"{name}.feed_forward.up_proj")
        ledger.free("temporaries", F)
        self.gate.backward(ledger, gradients, f"{name}.feed_forward.gate_proj")
        ledger.free("temporaries", F)
        ledger.free("activations", D)  # the normed input
        ledger.touch(D)
        ledger.free("temporaries", D)  # both gradients of it are one now
        self.norm.backward(ledger, gradients, f"{name}.ffn_norm")
        self._join(ledger)

    def _attention_backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        D, Q, KV = self.D, self.Q, self.KV
        self.o.backward(ledger, gradients, f"{name}.attention.o_proj")
        with ledger.during(self.wide_dq):
            ledger.take("temporaries", Q + 2 * KV)
        ledger.free("temporaries", Q)
        ledger.free("activations", 2 * Q + 2 * KV + self.lse)
        self.v.backward(ledger, gradients, f"{name}.attention.v_proj")
        ledger.free("temporaries", KV)
        if not self.setting.liger:
            ledger.touch(max(Q, KV))
        self.k.backward(ledger, gradients, f"{name}.attention.k_proj")
        ledger.free("temporaries", KV)
        ledger.touch(D)
        ledger.free("temporaries", D)
        self.q.backward(ledger, gradients, f"{name}.attention.q_proj")
        ledger.free("temporaries", Q)
        ledger.free("activations", D)  # the normed input
        ledger.touch(D)
        ledger.free("temporaries", D)
        self.norm.backward(ledger, gradients, f"{name}.attention_norm")
        self._join(ledger)

    def _join(self, ledger: Ledger) -> None:
        """The gradient through a branch is added to that past it."""
        if self.norm.keeps_input:
            ledger.free("activations", self.D)
        ledger.touch(self.D)
        ledger.free("temporaries", self.D)
