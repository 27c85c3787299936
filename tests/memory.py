"""How much memory live tensors take while a piece of code runs, counted storage by storage."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Inside, `live` and `peak` are the bytes of the tensors that were made inside and still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._bytes: dict[int, int] = {}

    def ignore(self, *tensors: Tensor) -> None:
        """Tensors from before do not count, nor do views of them."""
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage._cdata not in self._bytes:
                weakref.finalize(storage, self._free, storage._cdata)  # another may get its address
            self._bytes[storage._cdata] = 0

    def forget(self) -> None:
        """Count from here: what exists by now is no matter."""
        self._bytes = dict.fromkeys(self._bytes, 0)
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._bytes.pop(key)
