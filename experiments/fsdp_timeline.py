"""Check the predicted timelines of FSDP2 steps on real ranks whose network and processors are slowed to stated speeds.

    python -m experiments.fsdp_timeline              12 plans on 2 and 4 ranks, in data/results/fsdp_timeline.json

The ranks run torch's own `fully_shard` over gloo, so which collective is issued when, and what waits for it, is FSDP2's
doing. Two things are emulated, by sleeping: a layer computes for its FLOPs over the stated FLOP/s, and a collective
arrives after its bytes over the stated bandwidth, one after the other, as on one NCCL communicator. On CUDA a
reduce-scatter is issued when the one before it has arrived; on a processor FSDP2 leaves that out, and so it is emulated
too. Sleeping takes no processor, so other work on the machine changes the times by milliseconds only.
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from ftcourse.timeline import COMPUTE, NETWORK, Event, Plan, end_of, exposed, timeline
from ftkit.distributed.launch import run_forked
from ftkit.distributed.mesh import DistributedContext
from ftkit.models import data_dir

WIDTH = 128  # of the layers: small matrices, whose real products and transfers take well under a millisecond
STEPS = 6  # of each plan; the first is left out
BASE = Plan(
    layers=4,
    layer_parameters=WIDTH * WIDTH,
    root_parameters=2 * WIDTH * WIDTH,
    head_parameters=WIDTH * WIDTH,
    tokens=1000,
    ranks=2,
    flops=2 * WIDTH * WIDTH * 1000 / 0.06,  # a layer's forward pass takes 60 ms
    bandwidth=WIDTH * WIDTH * 4 / 2 / 0.04,  # and its all-gather 40 ms on 2 ranks
    gather_bytes=4,
)
SLOW = BASE.bandwidth / 4
PLANS = {
    "as it is": BASE,
    "slow network": replace(BASE, bandwidth=SLOW),
    "no prefetch in forward": replace(BASE, prefetch=False),
    "slow network, no prefetch": replace(BASE, bandwidth=SLOW, prefetch=False),
    "not resharded after forward": replace(BASE, reshard=False),
    "slow network, not resharded": replace(BASE, bandwidth=SLOW, reshard=False),
    "bfloat16, slow network": replace(BASE, gather_bytes=2, bandwidth=SLOW),
    "checkpointing": replace(BASE, recompute=True),
    "checkpointing, slow network": replace(BASE, recompute=True, bandwidth=SLOW),
    "2 micro-batches, slow network": replace(BASE, micro_batches=2, bandwidth=SLOW),
    "4 ranks": replace(BASE, ranks=4),
    "4 ranks, 6 layers, slow network": replace(BASE, ranks=4, layers=6, bandwidth=SLOW),
}


class Clock:
    """The events of this rank's step. `work` computes, and `send` returns when the network will have delivered."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.start = self.free = time.perf_counter()
        self.reduced = 0.0  # when the last reduce-scatter arrives
        self.events: list[Event] = []

    def _note(self, stream: str, what: str, layer: int, start: float, end: float) -> None:
        self.events.append(Event(stream, what, layer, start - self.start, end - self.start))

    def work(self, what: str, layer: int, seconds: float) -> None:
        start = time.perf_counter()
        sleep_until(start + seconds)
        self._note(COMPUTE, what, layer, start, time.perf_counter())

    def send(self, what: str, layer: int, seconds: float, issued: float) -> float:
        start = max(issued, self.free)
        self.free = start + seconds
        self._note(NETWORK, what, layer, start, self.free)
        return self.free


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


class Arrival(dist.Work):
    """The handle of a collective whose data are here already, and which nobody may use before `moment`."""

    def __init__(self, moment: float):
        super().__init__()
        self.moment = moment

    def wait(self, timeout=None) -> bool:
        sleep_until(self.moment)
        return True


class Throttled:
    """A collective of FSDP2, as `set_custom_all_gather` and `set_custom_reduce_scatter` take it."""

    def __init__(self, clock: Clock, plan: Plan, layer: int):
        self.clock, self.plan, self.layer = clock, plan, layer

    def allocate(self, size, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def seconds(self, whole: torch.Tensor, group: dist.ProcessGroup) -> float:
        return whole.nbytes * (group.size() - 1) / group.size() / self.plan.bandwidth


class AllGather(Throttled):
    def __call__(self, output_tensor, input_tensor, group, async_op=False) -> dist.Work:
        issued = time.perf_counter()
        dist.all_gather_into_tensor(output_tensor, input_tensor, group=group)
        return Arrival(self.clock.send("all-gather", self.layer, self.seconds(output_tensor, group), issued))


class ReduceScatter(Throttled):
    def __call__(self, output_tensor, input_tensor, group, op, async_op=False) -> None:
        sleep_until(self.clock.reduced)
        issued = time.perf_counter()
        dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group)
        seconds = self.seconds(input_tensor, group)
        self.clock.reduced = self.clock.send("reduce-scatter", self.layer, seconds, issued)


class Timed(torch.autograd.Function):
    """The identity, which takes stated seconds each way."""

    @staticmethod
    def forward(ctx, x, clock: Clock, layer: int, seconds: float) -> torch.Tensor:
        ctx.given = clock, layer, seconds
        clock.work("forward", layer, seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        clock, layer, seconds = ctx.given
        clock.work("backward", layer, 2 * seconds)
        return grad, None, None, None


class Layer(nn.Module):
    def __init__(self, clock: Clock, plan: Plan, number: int):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.clock, self.plan, self.number = clock, plan, number

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(Timed.apply(x, self.clock, self.number, self.plan.forward))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.compute, x, use_reentrant=False) if self.plan.recompute else self.compute(x)


class Model(nn.Module):
    def __init__(self, clock: Clock, plan: Plan):
        super().__init__()
        self.embedding = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList(Layer(clock, plan, number) for number in range(plan.layers))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.clock, self.plan = clock, plan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(Timed.apply(x, self.clock, -1, self.plan.head)).square().mean()


def sharded(plan: Plan, clock: Clock, mesh) -> Model:
    """The model under `fully_shard`, with throttled collectives."""
    model, dtype = Model(clock, plan), torch.bfloat16 if plan.gather_bytes == 2 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=plan.reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for number, module in ((-1, model), *enumerate(model.layers)):
        module.set_custom_all_gather(AllGather(clock, plan, number))
        module.set_custom_reduce_scatter(ReduceScatter(clock, plan, number))
    if plan.prefetch:  # on CUDA the CPU runs ahead, which has the same effect
        for module, following in zip((model, *model.layers), model.layers, strict=False):
            module.set_modules_to_forward_prefetch([following])
    return model


def measure(plan: Plan, mesh) -> tuple[list[float], list[Event]]:
    """The seconds of each step but the first on this rank, and the events of the last."""
    clock = Clock()
    model, seconds = sharded(plan, clock, mesh), []
    for _ in range(STEPS):
        batches = [torch.randn(2, WIDTH) for _ in range(plan.micro_batches)]
        dist.barrier()
        clock.begin()
        for number, batch in enumerate(batches, start=1):
            model.set_requires_gradient_sync(number == len(batches))
            model(batch).backward()
        sleep_until(clock.free)
        seconds.append(time.perf_counter() - clock.start)
        model.zero_grad()
    return seconds[1:], clock.events


def measure_on_ranks(context: DistributedContext, names: list[str]) -> dict[str, dict]:
    """What rank 0 measured of the plans with these names."""
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # collectives that get new names
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (context.world_size,))
    found = {}
    for name in names:
        seconds, events = measure(PLANS[name], mesh)
        found[name] = {"seconds": [round(s, 4) for s in seconds], "events": [list(event) for event in events]}
    return found


def record(measured: dict[str, dict]) -> list[dict]:
    """One row per plan: what was stated, predicted and measured."""
    rows = []
    for name, found in measured.items():
        events = timeline(PLANS[name])
        rows.append(
            {
                "name": name,
                "plan": asdict(PLANS[name]),
                "predicted": round(end_of(events), 4),
                "exposed": round(exposed(events), 4),
                "measured": median(found["seconds"]),
                "seconds": found["seconds"],
                "events": [[*event[:3], *(round(moment, 4) for moment in event[3:])] for event in found["events"]],
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fsdp_timeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "fsdp_timeline.json"
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    parser.add_argument("--plans", nargs="*", default=list(PLANS), help="names of plans (default: all)")
    given = parser.parse_args(arguments)
    found: dict[str, dict] = {}
    for ranks in sorted({PLANS[name].ranks for name in given.plans}):
        names, path = [n for n in given.plans if PLANS[n].ranks == ranks], given.output.with_suffix(f".{ranks}")

        def write(context: DistributedContext, names=names, path=path) -> None:
            measured = measure_on_ranks(context, names)
            if context.is_main_process:
                path.write_text(json.dumps(measured))

        run_forked(write, ranks)
        found |= json.loads(path.read_text())
        path.unlink()
    rows = record({name: found[name] for name in given.plans})
    text = ",\n".join(json.dumps(row) for row in rows)
    given.output.write_text(f'{{"torch": "{torch.__version__}", "rows": [\n{text}\n]}}\n')
    for row in rows:
        off = row["predicted"] / row["measured"] - 1
        print(f"{row['name']:32} predicted {row['predicted']:.3f} s, measured {row['measured']:.3f} s ({off:+.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
