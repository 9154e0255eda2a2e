"""Count the bytes of live tensors at every torch operation, by phase and by kind.

The same tracker watches real and fake tensors (`FakeTensorMode`), so estimate and measurement count the same thing:
each storage once, however many tensors view it. Temporaries inside a kernel and the allocator's cache are not seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ftkit._compat import device_of

Parts = dict[tuple[str, str], dict[str, int]]  # (phase, part of it) -> bytes at its peak, by kind
KINDS = ("weights", "gradients", "optimizer", "unsharded", "communication", "logits", "activations")


class MemoryTracker(TorchDispatchMode):
    """A context manager that keeps the live bytes in `now` and each phase's maximum in `peaks`.

    `begin` starts a phase, and `enter` a part of it. `at_peak[phase]` splits its peak by kind: `label` gives tensors a
    kind, storages that FSDP resizes are "unsharded", tensors of a collective are "communication", those with a last
    dimension of `vocabulary` are "logits", and all others "activations".
    """

    def __init__(self, vocabulary: int = 0):
        super().__init__()
        self.vocabulary, self.phase, self.part, self.prefix, self.now = vocabulary, "start", "", "", 0
        self.by_kind = Counter()
        self.parts: Parts = {}
        self._highest: dict[tuple[str, str], int] = {}  # the sums of `parts`
        self.traffic = Counter()  # of each collective: bytes of its largest tensor, summed
        self._live: dict[int, tuple[int, str]] = {}  # storage -> (bytes, kind)

    @property
    def at_peak(self) -> dict[str, dict[str, int]]:
        return highest_parts(self.parts)

    @property
    def peaks(self) -> dict[str, int]:
        return {phase: sum(split.values()) for phase, split in self.at_peak.items()}

    def clear_peaks(self) -> None:
        """Forget the peaks so far; live tensors stay counted."""
        self.parts, self._highest = {}, {}

    def label(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Set the kind of tensors, and count those that are not counted yet."""
        for tensor in tensors:
            storage = _local(tensor).untyped_storage()
            self._set(storage, storage.nbytes(), kind)

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count tensors that a step only reads."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._set(storage, 0, "ignored")

    def __enter__(self):
        resize = torch.UntypedStorage.resize_  # FSDP frees and allocates storages by it, without an operation

        def counted(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            self._set(storage, size, "unsharded")

        self._resize, torch.UntypedStorage.resize_ = resize, counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor handles it first; its local operations come here
        if operation is torch.ops.prim.device.default:  # two thirds of a step's operations, without a tensor
            return device_of(args[0])
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        if operation.namespace in ("c10d", "_c10d_functional", "fsdp"):
            sent = _tensors((args, kwargs))
            if operation.namespace != "fsdp":
                self.traffic[operation.overloadpacket.__name__] += max((t.nbytes for t in sent), default=0)
            if operation.overloadpacket.__name__ == "wait_tensor" and _key(out) != _key(sent[0]):
                # The output is the input if real and a new tensor if fake: count one of the two.
                self._set(sent[0].untyped_storage(), 0, "communication")
            for tensor in (*sent, *_tensors(out)):
                storage = tensor.untyped_storage()
                if self._live.get(storage._cdata, (0, "activations"))[1] == "activations":
                    self._set(storage, storage.nbytes(), "communication")
            return out
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                of_logits = self.vocabulary and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
                self._set(storage, storage.nbytes(), "logits" if of_logits else "activations")
        return out

    def _set(self, storage: torch.UntypedStorage, size: int, kind: str) -> None:
        key = storage._cdata
        if key not in self._live:
            weakref.finalize(storage, self._free, key)
        before, old = self._live.get(key, (0, kind))
        if kind == "unsharded" and old != "activations" and before:
            kind = old
        self.by_kind[old] -= before
        self.by_kind[kind] += size
        self.now += size - before
        self._live[key] = (size, kind)
        self._note_peak()

    def _note_peak(self) -> None:
        key = (self.phase, self.part)
        if self.now > self._highest.get(key, -1):
            self._highest[key], self.parts[key] = self.now, dict(self.by_kind)

    def begin(self, phase: str) -> None:
        """Begin a phase, named `prefix` + `phase`; its peak is at least what is alive now."""
        self.phase, self.part = self.prefix + phase, ""
        self._note_peak()

    def enter(self, part: str) -> None:
        """Begin a part of the phase, whose peak is that of its highest part."""
        self.part = part
        self._note_peak()

    def _free(self, key: int) -> None:
        size, kind = self._live.pop(key, (0, "activations"))
        self.now -= size
        self.by_kind[kind] -= size


def highest_parts(parts: Parts) -> dict[str, dict[str, int]]:
    """Of each phase the part with the most bytes, by kind."""
    found = {}
    for (phase, _), split in parts.items():
        if phase not in found or sum(split.values()) > sum(found[phase].values()):
            found[phase] = split
    return found


def _tensors(tree) -> list[torch.Tensor]:
    """The tensors with memory of their own: without wrappers, such as a collective's result before its wait."""
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [tensor for tensor in leaves if not is_traceable_wrapper_subclass(tensor)]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
