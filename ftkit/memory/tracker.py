"""Bytes of tensors that are alive, counted at every operation of torch's, by phase and by kind.

The same counter watches a real step and a fake one (`FakeTensorMode`), so a prediction and a measurement are of one
thing: storages, each once, however many tensors look into it. What a kernel allocates inside itself and what an
allocator keeps free are not seen.
"""

import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ftkit._compat import device_of

KINDS = ("weights", "gradients", "optimizer", "gathered", "communication", "logits", "activations")


class MemoryTracker(TorchDispatchMode):
    """A context in which `now` is the number of live bytes, and `peaks` has the most that each phase came to.

    `phase` is the name under which peaks are kept: set it as a step goes on. `at_peak[phase]` splits the peak by kind:
    `label` gives tensors a kind, storages that FSDP fills again are "gathered", what goes through a collective is
    "communication", a last dimension of `vocabulary` makes "logits", and all else is "activations".
    """

    def __init__(self, vocabulary: int = 0):
        super().__init__()
        self.vocabulary, self.phase, self.prefix, self.now = vocabulary, "start", "", 0
        self.by_kind, self.peaks, self.at_peak = Counter(), {}, {}
        self.traffic = Counter()  # bytes of the largest tensor given to each collective, by operation
        self._live: dict[int, tuple[int, str]] = {}  # storage -> (bytes, kind)

    def label(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count tensors, if they are not counted yet, and say what kind they are."""
        for tensor in tensors:
            storage = _local(tensor).untyped_storage()
            self._set(storage, storage.nbytes(), kind)

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count tensors that the caller keeps and a step only reads."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._set(storage, 0, "left out")

    def __enter__(self):
        resize = torch.UntypedStorage.resize_  # FSDP empties and fills storages by it, and no operation shows

        def counted(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            self._set(storage, size, "gathered")

        self._resize, torch.UntypedStorage.resize_ = resize, counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # let DTensor go first: its local operations come here one by one
        if operation is torch.ops.prim.device.default:  # two of three of a step's operations, and no tensor
            return device_of(args[0])
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        if operation.namespace in ("c10d", "_c10d_functional", "fsdp"):
            sent = _tensors((args, kwargs))
            if operation.namespace != "fsdp":
                self.traffic[operation.overloadpacket.__name__] += max((t.nbytes for t in sent), default=0)
            if operation.overloadpacket.__name__ == "wait_tensor" and _key(out) != _key(sent[0]):
                # A real one is the tensor that it waited for, and a fake one is new: count one of the two.
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
        if kind == "gathered" and old != "activations" and before:
            kind = old
        self.by_kind[old] -= before
        self.by_kind[kind] += size
        self.now += size - before
        self._live[key] = (size, kind)
        self._note_peak()

    def _note_peak(self) -> None:
        if self.now > self.peaks.get(self.phase, -1):
            self.peaks[self.phase] = self.now
            self.at_peak[self.phase] = dict(self.by_kind)

    def begin(self, phase: str) -> None:
        """Enter a phase, named with `prefix` before it: what is alive now counts for it."""
        self.phase = self.prefix + phase
        self._note_peak()

    def _free(self, key: int) -> None:
        size, kind = self._live.pop(key, (0, "activations"))
        self.now -= size
        self.by_kind[kind] -= size


def _tensors(tree) -> list[torch.Tensor]:
    """The tensors in it that have memory: not those that only wrap one, as a collective's do until it is waited for."""
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [tensor for tensor in leaves if not is_traceable_wrapper_subclass(tensor)]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
