"""Where the gradients of parameters go when the backward pass has made them."""

from pretrain.memory_plan.ledger import Ledger


class Gradients:
    """Kept on the parameter until the update, summed over micro-steps."""

    def __init__(self, ledger: Ledger, param: int):
        self.ledger, self.param = ledger, param
        self.last_micro_step = True
        """Whether the present backward pass ends the step."""
        self._held: dict[str, int] = {}
        self._wide: set[str] = set()

    def begin_forward(self) -> None:
        """Of a micro-step."""

    def begin_backward(self) -> None:
        """Of a micro-step."""

    def end_backward(self) -> None:
        """Of a micro-step."""

    def receive(self, name: str, numel: int) -> None:
        """A fresh gradient of `numel` numbers in the parameter's precision; added in place to one that is there."""
        size = numel * self.param
        if name in self._held:
            self.ledger.touch(size)
        else:
            self.ledger.take("gradients", size)
            self._held[name] = size
        self.arrived(name, numel)

    def arrived(self, name: str, numel: int) -> None:
        """What a hook does with it."""

    def widen(self, name: str, numel: int) -> None:
        """The parameter's gradient becomes one in fp32."""
        self.ledger.touch(4 * numel)
        self.drop(name)
        self.ledger.take("gradients", 4 * numel)
        self._held[name] = 4 * numel
        self._wide.add(name)

    def wide(self, name: str) -> bool:
        """Whether the parameter's gradient is in fp32."""
        return self.param == 4 or name in self._wide

    def holds(self, name: str) -> bool:
        """Whether the parameter has a gradient."""
        return name in self._held

    def drop(self, name: str) -> None:
        """The parameter's gradient is set to None."""
        self.ledger.free("gradients", self._held.pop(name))

    def clear(self) -> None:
        for name in list(self._held):
            self.drop(name)
