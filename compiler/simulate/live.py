"""The bytes alive at every allocation of a step, by kind: a dispatch mode that watches storages.

A storage lives from the operation that first returns it until Python's last reference and
autograd's are gone, which is when an allocator gets it back; views of it cost nothing.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("weights", "adapters", "gradients", "optimizer", "activations", "loss", "backward")
"""The last three are named after the phase that allocated them; `backward` holds recomputed
activations, flowing gradients and temporaries, the optimizer step's too."""

BORN = {
    "forward": "activations",
    "loss": "loss",
    "backward": "backward",
    "optimizer": "backward",
}
"""What a storage is called that a phase allocates."""

Row = tuple[int, ...]
"""Live bytes by kind, in the order of KINDS."""


@dataclass
class Segment:
    """One phase of one micro-batch: a row at its start and one after each allocation."""

    phase: str
    micro_batch: int
    rows: list[Row] = field(default_factory=list)


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every storage that an operation returns under the mode, and those it is told of.

    `block_bytes` is the unit in which the device's allocator hands out memory.
    """

    def __init__(self, block_bytes: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segments: list[Segment] = []
        self._block_bytes = block_bytes
        self._live = dict.fromkeys(KINDS, 0)
        self._kind: dict[int, str] = {}
        self._bytes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def enter(self, phase: str, micro_batch: int) -> None:
        self.segments.append(Segment(phase, micro_batch, [tuple(self._live.values())]))

    def hold(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count the tensors' storages as of the kind, also those already counted as another."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in self._kind:
                self._add(storage, kind)
            elif self._kind[key] != kind:
                self._live[self._kind[key]] -= self._bytes[key]
                self._live[kind] += self._bytes[key]
                self._kind[key] = kind

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if self.segments:
            kind = BORN[self.segments[-1].phase]
            for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    storage = leaf.untyped_storage()
                    if id(storage) not in self._kind:
                        self._add(storage, kind)
        return result

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = id(storage), storage.nbytes()
        size += -size % self._block_bytes
        self._kind[key], self._bytes[key] = kind, size
        self._watched[key] = weakref.ref(storage, partial(self._freed, key))
        self._live[kind] += size
        if self.segments:
            self.segments[-1].rows.append(tuple(self._live.values()))

    def _freed(self, key: int, _: object) -> None:
        del self._watched[key]
        self._live[self._kind.pop(key)] -= self._bytes.pop(key)
