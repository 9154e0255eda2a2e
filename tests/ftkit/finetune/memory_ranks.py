"""What the ranks of test_memory run: two steps of several fine-tunes, and the bytes that rank 0 had in the second.

`python -m tests.ftkit.finetune.memory_ranks CASES.json FOLDER`: for each number of ranks, a list of the fields of
`ftkit.finetune.config.Config`; FOLDER gets a file for each number, with what was measured, in the same order.
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ftkit.child_tuning import update
from ftkit.distributed.launch import run_forked
from ftkit.distributed.mesh import DistributedContext, build_context
from ftkit.finetune.config import Config, Run, validate
from ftkit.finetune.data import make_batches, read_training_data
from ftkit.finetune.loss import Loss
from ftkit.finetune.memory import MemoryMonitor
from ftkit.finetune.model import load_model, make_optimizer
from ftkit.finetune.train import take_step


def nbytes(tensors) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def measure(run: Run, context: DistributedContext) -> dict[str, int]:
    """Bytes on this rank: the peak of the second step as the program counts it, and what is held, by kind."""
    vars(update._buffers).clear()  # what the case before has left
    data, gradients = read_training_data(run), []
    loss = Loss(context, run.compute_dtype, bool(run.config.loss_chunk))
    context.barrier()
    if context.is_main_process:
        run.output.mkdir()
    context.barrier()
    model = load_model(run, data.source, context)
    optimizer, batches = make_optimizer(run, model, data, loss), make_batches(run, data, context)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append(nbytes(p.grad for p in model.parameters() if p.grad is not None))
    )
    monitor, peaks = MemoryMonitor(model, context.device), []
    # Under tensor parallelism a thread of gloo's may let go of a buffer late, in one step of fifty: the least of three.
    for number in (0, 1, 1, 1) if context.tp_mesh is not None else (0, 1):
        examples = batches[number]
        with monitor.step(number):
            take_step(model, optimizer, schedule, examples, batches, loss, run.config.max_grad_norm)
        peaks.append(monitor.used)
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return {
        "weights": nbytes(model.parameters()),
        "gradients": gradients[-1],
        "optimizer": nbytes(t for t in kept if t.ndim),
        "counters": nbytes(t for t in kept if not t.ndim),  # of steps, which estimates leave out
        "peak": min(peaks[1:]),
    }


if __name__ == "__main__":
    cases, found = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])

    def main(context: DistributedContext) -> None:
        measured = []
        for case in cases[str(context.world_size)]:
            run = validate(Config(**case))
            measured.append(measure(run, build_context(run.dims, context.device_info)))
        if context.is_main_process:
            Path(found, f"{context.world_size}.json").write_text(json.dumps(measured))

    for number in cases:
        run_forked(main, int(number))
