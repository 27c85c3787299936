"""What the linears take: one function pair for each kind in model.linear.LINEARS.

`forward` has its input alive, takes its output (item temporaries, which the caller frees or renames) and, where it
`saves`, what it keeps for the backward pass beside its input. `backward` has the gradient of its output alive, takes
that of its input, frees what was kept, and hands the gradients of its parameters to the sink. Neither frees its input
or its output's gradient.
"""

from abc import ABC, abstractmethod
from typing import Any

from kernels.block_support import choose_block
from kernels.support import padded_width
from model.linear.support.element import ElementSparse
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.setting import Setting


class LinearMemory(ABC):
    """A linear of one kind and shape."""

    def __init__(self, config: Any, in_features: int, out_features: int, setting: Setting):
        self.config, self.setting = config, setting
        self.n_in, self.n_out = in_features, out_features

    @abstractmethod
    def forward(self, ledger: Ledger, saves: bool) -> None: ...

    @abstractmethod
    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None: ...

    def recompute(self, ledger: Ledger) -> None:
        """The end of a recomputed block: what the backward pass needs is made, the output is of no use."""
        self.forward(ledger, True)
        ledger.free("temporaries", self.output)

    def derived(self) -> int:
        """Bytes of what is derived from buffers on first use and kept."""
        return 0

    def kept(self) -> int:
        """Bytes of what is kept over an optimizer step."""
        return 0

    def scratch(self) -> int:
        """Bytes of memory that all linears share: the largest counts."""
        return 0

    @property
    def output(self) -> int:
        return self.setting.activation(self.n_out)

    @property
    def input(self) -> int:
        return self.setting.activation(self.n_in)


class DenseMemory(LinearMemory):
    """W is cast, and the cast is kept for the gradient of the input."""

    def forward(self, ledger: Ledger, saves: bool) -> None:
        copy = self.n_in * self.n_out * self.setting.compute if self.setting.casts else 0
        ledger.take("weight_copies", copy)
        ledger.take("temporaries", self.output)
        if not saves:
            ledger.free("weight_copies", copy)

    def recompute(self, ledger: Ledger) -> None:
        """It ends before the product."""
        ledger.take("weight_copies", self.n_in * self.n_out * self.setting.compute if self.setting.casts else 0)

    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        setting, numel = self.setting, self.n_in * self.n_out
        ledger.take("temporaries", self.input)
        if not setting.casts:
            gradients.receive(f"{name}.weight", numel)
            return
        with ledger.during(numel * setting.compute):
            ledger.free("weight_copies", numel * setting.compute)
            gradients.receive(f"{name}.weight", numel)


class Int8Memory(LinearMemory):
    """W is read from its codes into memory that all linears of one shape share."""

    def scratch(self) -> int:
        return self.n_in * self.n_out * self.setting.compute

    def forward(self, ledger: Ledger, saves: bool) -> None:
        if not self.setting.cuda:  # codes as numbers, step by step
            ledger.touch(12 * self.n_in * self.n_out)
        ledger.take("temporaries", self.output)

    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        if not self.setting.cuda:
            ledger.touch(12 * self.n_in * self.n_out)
        ledger.take("temporaries", self.input)
        gradients.receive(f"{name}.weight", self.n_in * self.n_out)


class LowRankMemory(LinearMemory):
    """A, scale B and x A^T are kept."""

    def _sizes(self) -> tuple[int, int, int]:
        """A, B and x A^T in the precision of the computation."""
        rank, b = self.config.rank, self.setting.compute
        return rank * self.n_in * b, self.n_out * rank * b, self.setting.activation(rank)

    def forward(self, ledger: Ledger, saves: bool) -> None:
        A, B, z = self._sizes()
        copies = B + (A if self.setting.casts else 0)
        ledger.take("activations", z)
        ledger.take("weight_copies", copies)
        ledger.touch(B if self.setting.casts else 0)
        ledger.take("temporaries", self.output)
        if not saves:
            ledger.free("activations", z)
            ledger.free("weight_copies", copies)

    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        A, B, z = self._sizes()
        setting, rank = self.setting, self.config.rank
        with ledger.during(z):  # the gradient of x A^T
            with ledger.during(2 * B):  # that of scale B, and of B
                ledger.free("weight_copies", B)
                ledger.free("activations", z)
                gradients.receive(f"{name}.B", self.n_out * rank)
            ledger.take("temporaries", self.input)
            with ledger.during(A if setting.casts else 0):
                ledger.free("weight_copies", A if setting.casts else 0)
                gradients.receive(f"{name}.A", rank * self.n_in)


class SparseLowRankMemory(LinearMemory):
    """W is built when it is needed, kept as the choice says, and its gradient takes its memory."""

    def __init__(self, config: Any, in_features: int, out_features: int, setting: Setting):
        super().__init__(config, in_features, out_features, setting)
        self.block = config.support == "block"
        if self.block:
            block, k = choose_block((out_features, in_features), config.density)
            self.nnz = out_features * k * block
        else:
            self.nnz = ElementSparse.count(config.density, in_features, out_features)
        self.choice = setting.choice((out_features, in_features))
        rank, b = config.rank, setting.compute
        self.A, self.B, self.values = rank * in_features, out_features * rank, self.nnz
        self.casts = (self.A + self.B + self.nnz) * b if setting.casts else 0
        width = padded_width(in_features) if setting.cuda else in_features
        self.weight = out_features * width * b
        self.summed = 4 * self.n_in * self.n_out
        """Bytes of W's gradient, summed over two micro-steps or more."""
        self.factored = self.block or self.choice.path == "csr"

    def derived(self) -> int:
        """Bytes of what is derived from the support on first use and kept (the support itself is a buffer)."""
        if self.block:
            return 0
        if self.choice.path == "csr":  # both orders: int32 rows and columns, int64 places; and the flat positions
            return self.nnz * (4 + 2 * (4 + 8)) + 4 * (self.n_in + self.n_out + 2)
        return 0 if self.setting.cuda else 4 * self.nnz

    def kept(self) -> int:
        """Bytes of W where it is kept over a step."""
        return self.weight if not self.factored and self.choice.keep == "step" else 0

    def forward(self, ledger: Ledger, saves: bool) -> None:
        if self.factored:
            z = self.setting.activation(self.config.rank)
            ledger.take("activations", z)
            ledger.touch(self.casts)
            ledger.take("temporaries", self.output)
            if not saves:
                ledger.free("activations", z)
            return
        if self.choice.keep == "step":
            ledger.take("temporaries", self.output)
            return
        keeps = self.choice.keep == "layer"
        with ledger.during(self.casts):
            ledger.take("kept_weights" if keeps else "temporaries", self.weight)
        ledger.take("temporaries", self.output)
        if not keeps:
            ledger.free("temporaries", self.weight)
        elif not saves:
            ledger.free("kept_weights", self.weight)

    def backward(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        choice, b = self.choice, self.setting.compute
        if self.factored:
            z = self.setting.activation(self.config.rank)
            with ledger.during(z + self.casts):
                ledger.take("temporaries", self.input)
                self._factors(ledger, gradients, name)
            ledger.free("activations", z)
            return
        if choice.keep == "none":
            with ledger.during(self.casts):
                ledger.take("temporaries", self.weight)
            ledger.take("temporaries", self.input)
            self._factors(ledger, gradients, name)
            ledger.free("temporaries", self.weight)
            return
        ledger.take("temporaries", self.input)
        if choice.keep == "step" and choice.accumulate:
            # Summed in fp32; a GPU adds a product of bf16 matrices to it at once, a CPU makes the product first.
            narrow = self.n_in * self.n_out * b
            ledger.touch(0 if self.setting.cuda or b == 4 else narrow)
            if not gradients.last_micro_step:
                ledger.take("kept_weights", self.summed)
                return
            with ledger.during(narrow if b < 4 else 0):
                self._factors(ledger, gradients, name)
            ledger.free("kept_weights", self.summed)
            return
        with ledger.during(self.weight):
            self._factors(ledger, gradients, name)
        if choice.keep == "layer":
            ledger.free("kept_weights", self.weight)

    def _factors(self, ledger: Ledger, gradients: Gradients, name: str) -> None:
        """Gradients of both factors and the values; all exist before the first is handed on."""
        b, p = self.setting.compute, self.setting.param
        copies = b if self.setting.casts else 0
        ledger.touch(self.B * copies + self.A * b)
        ledger.take("temporaries", self.A * p)
        ledger.touch(self.A * copies + self.B * b)
        ledger.take("temporaries", self.B * p)
        with ledger.during(self.nnz * copies):
            ledger.take("temporaries", self.nnz * p)
        for own, numel in (("A", self.A), ("B", self.B), ("values", self.nnz)):
            ledger.free("temporaries", numel * p)
            gradients.receive(f"{name}.{own}", numel)


MEMORY: dict[str, type[LinearMemory]] = {
    "dense": DenseMemory,
    "low_rank": LowRankMemory,
    "sparse_low_rank": SparseLowRankMemory,
}
"""By the name of the linear."""


def linear_memory(config: Any, in_features: int, out_features: int, setting: Setting) -> LinearMemory:
    """Of the kind `config.name`, with codes where the setting says so."""
    kind = Int8Memory if setting.int8 else MEMORY[config.name]
    return kind(config, in_features, out_features, setting)
