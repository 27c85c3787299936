"""What an optimizer with its engine keeps, and what its step takes."""

from abc import ABC, abstractmethod

from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger


class Update(ABC):
    """Of one process."""

    @property
    @abstractmethod
    def before(self) -> int:
        """Bytes before the first step: weights and all state."""

    @property
    def host(self) -> int:
        """Bytes that are in the host's memory instead; no item of the ledger."""
        return 0

    @abstractmethod
    def begin(self, ledger: Ledger) -> None:
        """Take them."""

    @abstractmethod
    def gradients(self, ledger: Ledger) -> Gradients:
        """Where gradients go."""

    @abstractmethod
    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        """After the last micro-step: enter the phase, take and free."""
