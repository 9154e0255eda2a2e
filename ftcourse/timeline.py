"""Predict the timeline of an FSDP2 training step from stated FLOP/s and bandwidth: what overlaps, and what does not.

Two streams, as on a GPU: one computes, the other moves data. The rules are those of `fully_shard` in torch 2.13:

- a layer computes once its weights are gathered; when it starts, the next layer's all-gather is issued;
- in backward the layers come in reverse order, and are gathered again if they were resharded after forward;
- a layer's reduce-scatter is issued after its backward, once the one before it has arrived;
- the network carries one collective at a time, in the order in which they are issued.

    events = timeline(Plan(layers=32, layer_parameters=218_112_000, root_parameters=1_050_677_248, tokens=8192, ranks=8,
                           flops=400e12, bandwidth=450e9))
    end_of(events), exposed(events)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ftkit._modules import decoder_layers

COMPUTE, NETWORK = "compute", "network"


class Event(NamedTuple):
    """What a stream does from `start` to `end`, in seconds since the step began."""

    stream: str  # COMPUTE or NETWORK
    what: str  # forward, backward, all-gather or reduce-scatter
    layer: int  # -1 for the root: embedding, last norm, head
    start: float
    end: float


@dataclass(frozen=True)
class Cluster:
    """Equal nodes. A collective over several nodes enters each node once, through all its cards together.

    So a ring over nodes moves `cards * card` bytes a second, as long as the links in the node can keep up; that is the
    "bus bandwidth" of nccl-tests. The defaults are an H100 node: NVLink's 450 GB/s each way, a 400 Gb/s card per GPU.
    """

    gpus: int
    per_node: int = 8
    in_node: float = 450e9  # bytes a second, of one GPU, in one direction
    cards: int = 8  # network cards of a node
    card: float = 50e9  # bytes a second of one card, in one direction

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a collective over all GPUs."""
        return self.in_node if self.nodes == 1 else min(self.in_node, self.cards * self.card)


@dataclass(frozen=True)
class Plan:
    """A step of one rank under `fully_shard`. Compute and network are stated, not measured."""

    layers: int
    layer_parameters: int
    root_parameters: int  # embedding, last norm and head, which the root keeps unsharded through the step
    tokens: int  # of a micro-batch of a rank
    ranks: int
    flops: float  # a second, as a rank's matrix products reach them
    bandwidth: float  # bytes a second of a collective: `Cluster.bandwidth`
    head_parameters: int = 0
    attention: float = 0.0  # FLOPs of a layer's attention in forward, beside those of its matrices
    gather_bytes: int = 2  # of a gathered parameter
    reduce_bytes: int = 4  # of a reduced gradient
    reshard: bool = True  # reshard_after_forward
    prefetch: bool = True  # gather the next layer while one computes, in forward
    recompute: bool = False  # activation checkpointing
    micro_batches: int = 1

    def moved(self, parameters: int, itemsize: int) -> float:
        """Seconds to all-gather or reduce-scatter `parameters` by a ring."""
        return parameters * itemsize * (self.ranks - 1) / self.ranks / self.bandwidth

    @property
    def forward(self) -> float:
        """Seconds of a layer's forward pass: 2 FLOPs per parameter and token."""
        return (2 * self.layer_parameters * self.tokens + self.attention) / self.flops

    @property
    def backward(self) -> float:
        return (3 if self.recompute else 2) * self.forward

    @property
    def head(self) -> float:
        return 2 * self.head_parameters * self.tokens / self.flops


def timeline(plan: Plan) -> list[Event]:
    """The events of a step, in the order in which they are issued."""
    events: list[Event] = []
    now = {COMPUTE: 0.0, NETWORK: 0.0}  # when each stream is free
    arrives: dict[int, float] = {}  # layer -> when its gathered weights are there
    reduced = 0.0  # when the last reduce-scatter arrives

    def run(stream: str, what: str, layer: int, seconds: float) -> float:
        start = max(now[COMPUTE], now[stream])  # a collective is issued by the compute stream's position
        now[stream] = start + seconds
        events.append(Event(stream, what, layer, start, now[stream]))
        return now[stream]

    def gather(layer: int) -> None:
        if layer < plan.layers and layer not in arrives:
            parameters = plan.root_parameters if layer < 0 else plan.layer_parameters
            arrives[layer] = run(NETWORK, "all-gather", layer, plan.moved(parameters, plan.gather_bytes))

    def wait(layer: int) -> None:
        gather(layer)  # unless it was prefetched
        now[COMPUTE] = max(now[COMPUTE], arrives[layer])

    def reduce(layer: int, parameters: int) -> None:
        nonlocal reduced
        now[COMPUTE] = max(now[COMPUTE], reduced)
        reduced = run(NETWORK, "reduce-scatter", layer, plan.moved(parameters, plan.reduce_bytes))

    for micro_batch in range(plan.micro_batches):
        wait(-1)
        for layer in range(plan.layers):
            wait(layer)
            if plan.prefetch:
                gather(layer + 1)
            run(COMPUTE, "forward", layer, plan.forward)
            if plan.reshard:
                del arrives[layer]
        run(COMPUTE, "forward", -1, plan.head)
        gather(plan.layers - 1)
        run(COMPUTE, "backward", -1, 2 * plan.head)
        for layer in reversed(range(plan.layers)):
            wait(layer)
            if layer:
                gather(layer - 1)
            run(COMPUTE, "backward", layer, plan.backward)
            del arrives[layer]
            if micro_batch == plan.micro_batches - 1:
                reduce(layer, plan.layer_parameters)
        arrives.clear()
    reduce(-1, plan.root_parameters)
    return events


def end_of(events: Sequence[Event]) -> float:
    """Seconds of the step, without the optimizer."""
    return max(event.end for event in events)


def exposed(events: Sequence[Event]) -> float:
    """Seconds in which the rank waits for the network: the step without its compute."""
    return end_of(events) - sum(event.end - event.start for event in events if event.stream == COMPUTE)


def plan_of_model(model: nn.Module, cluster: Cluster, *, batch: int, length: int, flops: float, **changes) -> Plan:
    """The plan of a Llama-like model, which may be on meta: `batch` sequences of `length` tokens on each GPU.

    Attention adds 2 · batch · length² · hidden FLOPs to a layer's forward pass: half of scores and values is masked.
    """
    layers, head = decoder_layers(model), model.get_output_embeddings().weight.numel()
    of_layer = sum(parameter.numel() for parameter in layers[0].parameters())
    return Plan(
        layers=len(layers),
        layer_parameters=of_layer,
        root_parameters=sum(p.numel() for p in model.parameters()) - of_layer * len(layers),
        head_parameters=head,
        tokens=batch * length,
        attention=2.0 * batch * length**2 * model.config.hidden_size,
        ranks=cluster.gpus,
        bandwidth=cluster.bandwidth,
        flops=flops,
        **changes,
    )
