"""A meter in torch's dispatcher: the operations that compute, the bytes that they read and write, the bytes alive."""

import weakref
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Within the block, counts operations by name, the bytes that they move, and the bytes of new tensors alive.

    What is inside an operation goes unseen, such as a kernel's own buffers. Views move nothing.

    Attributes: `operations`, a Counter; `moved`, bytes read and written; `alive`, bytes after each change, from 0.
    """

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.moved, self.alive, self._sizes = 0, [0], {}

    @property
    def peak(self) -> int:
        return max(self.alive)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        read, given = _tensors(args), _tensors((args, kwargs))
        result = operation(*args, **(kwargs or {}))
        before = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = _tensors(result)
        new = [t for t in made if t.untyped_storage().data_ptr() not in before]
        _, name, variant = str(operation).split(".")  # as aten.add_.Tensor: in place
        works = new or name.endswith("_") or variant.endswith("out")
        if works and "empty" not in name:  # to reserve memory moves nothing
            self.operations[name] += 1
            self.moved += sum(tensor.nbytes for tensor in (*read, *made))
        for storage in (tensor.untyped_storage() for tensor in new):
            self._sizes[storage.data_ptr()] = storage.nbytes()
            self.alive.append(self.alive[-1] + storage.nbytes())
            weakref.finalize(storage, self._free, storage.data_ptr())
        return result

    def _free(self, where: int) -> None:
        self.alive.append(self.alive[-1] - self._sizes.pop(where, 0))


def metered(function, *args) -> Meter:
    """Run it and return its meter; gradients of `args` from earlier runs are dropped first."""
    for tensor in args:
        if isinstance(tensor, torch.Tensor):
            tensor.grad = None
    with Meter() as meter:
        function(*args)
    return meter


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
