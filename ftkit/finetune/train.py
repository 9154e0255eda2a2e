"""Fine-tune a causal language model on conversations: one process on a CPU, or N GPUs on M nodes.

    python -m ftkit.finetune --output runs/first
    torchrun --nproc-per-node 2 -m ftkit.finetune --output runs/sharded --optimizer child-tuning
    torchrun --nproc-per-node 8 -m ftkit.finetune run.yaml

The batch size is global, and the loss is the mean over all unmasked tokens of the global batch: any number
of ranks, on any mesh, computes the same thing.
"""

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import nn
from tqdm.auto import tqdm
from transformers import HfArgumentParser, get_scheduler

from ftkit.batching import Example, check_no_leak, global_batch, steps_per_epoch
from ftkit.distributed import launch, mesh
from ftkit.distributed.checkpoint import Checkpoints, full_state_dict, latest_checkpoint
from ftkit.distributed.device import pick_device
from ftkit.distributed.fsdp import check_compiler
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.memory import Estimate, compare

from .config import Config, compute_dtype, validate
from .data import TrainingData, read_training_data
from .export import export_lora, export_weights
from .loss import accumulate_gradients, evaluate, local_micro_batches
from .memory import MemoryMonitor, print_memory_estimate
from .model import load_model
from .optimizers import make_optimizer


def train(
    config: Config,
    inputs: TrainingData,
    context: DistributedContext,
    preemption: PreemptionHandler,
    told: Estimate | None = None,
) -> None:
    output = Path(config.output)
    model = load_model(config, inputs.source, context)
    optimizer = make_optimizer(config, model, inputs, context)  # of the sharded parameters
    if config.packing:  # afterwards, for a forward pass leaves the root's parameters gathered
        check_no_leak(model, context.device)
    steps = config.max_steps or round(config.epochs * steps_per_epoch(inputs.train, config.batch_size))
    schedule = get_scheduler("linear", optimizer, round(config.warmup_ratio * steps), steps)
    about = {"model": inputs.source, "method": config.method, "optimizer": config.optimizer}
    lora = config.method == "lora"  # whose base comes back from its own files
    checkpoints = Checkpoints(output / "checkpoints", about, context, trainable_only=lora)
    first = 0
    if config.resume:
        saved = checkpoints.load(model, optimizer, {"schedule": schedule.state_dict()})
        schedule.load_state_dict(saved["schedule"])
        first = saved["step"]
    metrics = MetricsFile(output / "metrics.jsonl", first) if context.is_main_process else None
    last = min(steps, config.stop_after or steps)
    progress = tqdm(
        range(first, last), initial=first, total=last, desc="fine-tune", disable=not context.is_main_process
    )
    memory = MemoryMonitor(model, context.device)
    for step in progress:
        start = time.perf_counter()
        batch = global_batch(inputs.train, step, config.batch_size, config.seed)
        with memory.step(step - first) if told else nullcontext():
            measured = take_step(model, optimizer, schedule, batch, inputs, config, context)
        seconds = time.perf_counter() - start
        if told and step - first == 1:
            tqdm.write(compare(told, memory.used))
        row = {"step": step + 1, **measured, "seconds": round(seconds, 4)}
        row["tokens_per_second"] = round(sum(len(r["input_ids"]) for r in batch) / seconds)
        if stopped := preemption.requested(context):
            last = step + 1
        done = step + 1 == last
        if inputs.evaluation and (done or (config.eval_every and (step + 1) % config.eval_every == 0)):
            row["eval_loss"] = evaluate(model, inputs, config, context)
        if metrics:
            metrics.write(row)
            progress.set_postfix(loss=f"{measured['loss']:.3f}")
        if done or (config.save_every and (step + 1) % config.save_every == 0):
            checkpoints.save(step + 1, model, optimizer, {"schedule": schedule.state_dict()})
        if stopped:
            break
    checkpoints.finish()
    if last == steps:
        export(model, inputs, config, context)
    elif context.is_main_process:
        print(f"stopped after step {last} of {steps}: run the same command with --resume to go on")


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: list[Example],
    inputs: TrainingData,
    config: Config,
    context: DistributedContext,
) -> dict[str, float]:
    """One step of the optimizer on a global batch; returns its loss, learning rate and gradient norm."""
    loss = accumulate_gradients(model, batch, inputs, config, context)
    # Clipped before child-tuning masks: the norm is that of the whole gradient, as in every other run.
    norm = clip_grad_norm_(model.parameters(), config.max_grad_norm)
    lr = schedule.get_last_lr()[0]
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return {"loss": loss, "lr": lr, "grad_norm": norm}


def estimate_run(config: Config, inputs: TrainingData) -> Estimate | None:
    """What this run will use, told by rank 0 before there is a process group."""
    world_size = launch.env_world_size()
    shape = mesh.ParallelDims.parse(config.mesh, world_size)
    device_info = pick_device(int(os.environ.get("LOCAL_RANK", 0)), world_size)
    context = DistributedContext(0, world_size, device_info, None, None, shape)
    batches = local_micro_batches(
        global_batch(inputs.train, 1, config.batch_size, config.seed), config, inputs, context
    )
    cuda = device_info.device.type == "cuda"
    return print_memory_estimate(config, inputs.source, shape, compute_dtype(config, context), batches, cuda)


def export(model: nn.Module, inputs: TrainingData, config: Config, context: DistributedContext) -> None:
    """Write `OUTPUT/model`, an ordinary Hugging Face folder, and of a LoRA run `OUTPUT/adapter` beside it."""
    lora, output = config.method == "lora", Path(config.output)
    state = full_state_dict(model, trainable_only=lora)
    if not context.is_main_process:
        return
    if lora:
        options = {"r": config.lora_r, "alpha": config.lora_alpha, "target_modules": config.target_modules}
        folders = output / "adapter", output / "model"
        print(export_lora(state, options, inputs.source, inputs.tokenizer, inputs.train[:2], *folders))
    else:
        export_weights(state, inputs.source, inputs.tokenizer, output / "model")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = HfArgumentParser(Config, prog="python -m ftkit.finetune", description=__doc__.partition("\n")[0])
    try:
        if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
            (config,) = parser.parse_yaml_file(arguments[0])
        else:
            (config,) = parser.parse_args_into_dataclasses(arguments)
        output = Path(config.output)
        again = launch.is_same_launch(output) and latest_checkpoint(output / "checkpoints") is not None
        config.resume = config.resume or again
        validate(config)
        if config.compile:
            check_compiler(pick_device().device)
        inputs = read_training_data(config)
    except (ValueError, OSError) as error:
        if launch.env_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(3)  # torchrun ends every rank when the first one fails: let rank 0 speak
        raise SystemExit(2) from None

    told = estimate_run(config, inputs) if launch.env_rank() == 0 else None

    def start(context: DistributedContext) -> None:
        context.barrier()  # every rank has seen that the output folder is free
        if context.is_main_process and not config.resume:
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
        if context.is_main_process:
            (output / "launch").write_text(launch.launch_id())
        context.barrier()
        with PreemptionHandler() as preemption:
            train(config, inputs, context, preemption, told)

    launch.run_distributed(start, config.mesh, timedelta(minutes=config.timeout))


class MetricsFile:
    """Opened for a run that goes on after `first_step`: lines of steps that it will do again are dropped."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A crash can leave half a line at the end.
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= first_step]
        path.write_text("".join(kept))

    def write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
