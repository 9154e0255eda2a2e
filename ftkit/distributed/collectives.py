"""Count what the ranks send each other: `with CountCollectives() as sent: …; sent.counts`."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {  # torch's operators -> what torch.distributed calls them
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "broadcast_": "broadcast",
}


class CountCollectives(TorchDispatchMode):
    """`counts` maps each collective to the number of times that this rank entered it inside the block.

    torch's own CommDebugMode cannot follow two forward passes of one model in one block, as accumulation has them.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "c10d":
            name = operator.__name__.split(".")[0]
            self.counts[NAMES.get(name, name)] += 1
        return operator(*args, **(kwargs or {}))
