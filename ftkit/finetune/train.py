"""Fine-tune a causal language model on conversations: one process on a CPU, or N GPUs on M nodes.

    ftkit finetune --output runs/first
    torchrun --nproc-per-node 2 -m ftkit.finetune --output runs/sharded --optimizer child-tuning
    torchrun --nproc-per-node 8 -m ftkit.finetune run.yaml

The batch size is global, and the loss is the mean over all unmasked tokens of the global batch: any number of ranks, on
any mesh, computes the same thing.
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import get_scheduler

from ftkit.adapters import MergeError
from ftkit.batching import Example, check_no_leak
from ftkit.distributed.checkpoint import Checkpoints, full_state_dict
from ftkit.distributed.checkpoint_folder import CheckpointError
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.distributed.launch import Refusal, env_rank, launch_id, print_refusal, refused_by_all, run_distributed
from ftkit.distributed.loading import files_digest
from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.preemption import PreemptionHandler
from ftkit.divergence import record
from ftkit.memory import Estimate, compare

from .config import Run, parse_config, validate
from .data import Batches, TrainingData, make_batches, read_training_data
from .export import export_lora, export_weights
from .loss import Loss, accumulate_gradients, check_chunked, evaluate
from .memory import MemoryMonitor, print_memory_estimate
from .metrics import Logger, MetricsFile
from .model import load_model, make_optimizer
from .quantised import is_quantised
from .selection import Selection
from .trackers import start_trackers

Schedule = torch.optim.lr_scheduler.LRScheduler


def fine_tune(
    run: Run,
    data: TrainingData,
    context: DistributedContext,
    preemption: PreemptionHandler,
    estimate: Estimate | None = None,
) -> None:
    """A whole run on this rank: load, train, checkpoint, export.

    The output folder is made when the model is loaded and checked. Raises Refusal on all ranks before that, and
    CheckpointError, FloatingPointError, MergeError or OSError after it.

    Args:
        preemption: asked after every step whether the run should checkpoint and stop.
        estimate: of the peak memory of step 2, which is then measured and compared.
    """
    config, loss = run.config, Loss(context, run.compute_dtype, bool(run.config.loss_chunk))
    with refused_by_all(context):
        model = load_model(run, data.source, context)
        if config.packing:
            check_packing(model, context.device)
        if config.loss_chunk:
            check_chunked(model, loss)
    with refused_by_all(context):
        if context.is_main_process:
            make_output(run)
    optimizer = make_optimizer(run, model, data, loss)  # of the sharded parameters
    batches = make_batches(run, data, context)
    steps, schedule = make_schedule(run, optimizer, batches)
    selection = Selection(config.load_best_model_at_end, config.early_stopping_patience)
    metadata = {"model": data.source, "method": config.method, "optimizer": config.optimizer, "data": data.digest}
    if run.lora:  # the frozen base comes back from its own files
        metadata["base"] = files_digest(data.source)
    checkpoints = Checkpoints(run.checkpoints, metadata, context, config.save_total_limit, trainable_only=run.lora)
    saved, first = {"schedule": schedule.state_dict(), "selection": selection.state_dict()}, 0
    if run.resume:
        saved = checkpoints.load(model, optimizer, saved)
        schedule.load_state_dict(saved["schedule"])
        selection.load_state_dict(saved["selection"])
        first = saved["step"]
    last = first if selection.exhausted else min(steps, config.stop_after or steps)
    file = MetricsFile(run.output / "metrics.jsonl", first) if context.is_main_process else None
    trackers = start_trackers(run.trackers, run.output, asdict(config)) if context.is_main_process else []
    with closing(Logger(file, trackers, first, last)) as logger:  # so that an error stands below the bar
        done = train(
            model,
            optimizer,
            schedule,
            batches,
            loss,
            checkpoints,
            logger,
            selection,
            steps=range(first, last),
            total=steps,
            seed=config.seed,
            max_grad_norm=config.max_grad_norm,
            evaluation=data.evaluation,
            eval_every=config.eval_every,
            save_every=config.save_every,
            preemption=preemption,
            estimate=estimate,
        )
        checkpoints.finish()
    if done == steps or selection.exhausted:
        if selection.kept_step not in (None, done):
            checkpoints.load(model, optimizer, saved, selection.kept_step)
        try:
            export(run, model, data, context)
        except (OSError, SafetensorError) as error:
            raise OSError(f"the trained model could not be written: {error}: make room and give --resume") from error
        if context.is_main_process:
            print(describe_end(run, selection, file))
    elif context.is_main_process:
        print(f"stopped after step {done} of {steps}: run the same command with --resume to continue")


def make_schedule(run: Run, optimizer: torch.optim.Optimizer, batches: Batches) -> tuple[int, Schedule]:
    """The number of steps of a run, and the learning rate's schedule over them."""
    config = run.config
    # Rounded up, but for the error of a product such as 1.1 * 10.
    steps = config.max_steps or math.ceil(config.epochs * batches.steps_per_epoch * (1 - 1e-9))
    warmup = config.warmup_steps or round(config.warmup_ratio * steps)
    return steps, get_scheduler(config.lr_scheduler_type, optimizer, warmup, steps)


def record_steps(run: Run, data: TrainingData, context: DistributedContext) -> None:
    """Record the first `--record` steps of a run: from its beginning, and from there again with rounding noise."""
    config, loss = run.config, Loss(context, run.compute_dtype, bool(run.config.loss_chunk))
    with refused_by_all(context):
        if context.is_main_process:
            make_output(run)
    for rounding in (False, True):
        with refused_by_all(context):
            model = load_model(run, data.source, context)
        optimizer, batches = make_optimizer(run, model, data, loss), make_batches(run, data, context)
        steps, schedule = make_schedule(run, optimizer, batches)
        recorded = min(config.record, steps)
        with record(run.output, model, optimizer, steps=recorded, rounding=rounding):
            for step in range(recorded):
                with seeded(config.seed, step, context):
                    take_step(model, optimizer, schedule, batches[step], batches, loss, config.max_grad_norm)
        del model, optimizer, schedule
    context.barrier()
    if context.is_main_process:
        print(f"recorded {recorded} steps. To compare: ftkit compare-runs {run.output} OTHER")


def describe_end(run: Run, selection: Selection, file: MetricsFile) -> str:
    """Where the model lies, its eval loss, and how to talk to it."""
    folder, record = run.output / "model", file.last("eval_loss")
    loss = selection.best_loss if selection.kept_step else record and record["eval_loss"]
    said = f", of step {selection.kept_step}" * bool(selection.kept_step) + (f"; eval loss {loss:.4f}" if loss else "")
    if not folder.is_dir():  # an adapter of a quantised base
        adapter = run.output / "adapter"
        return f"the adapter is in {adapter}{said}. To talk to it: ftkit merge {adapter} OUT, then ftkit chat-with OUT"
    return f"the model is in {folder}{said}. To talk to it: ftkit chat-with {folder}"


def check_packing(model: nn.Module, device: torch.device) -> None:
    """Raise ValueError for a model that cannot keep packed conversations apart."""
    try:
        check_no_leak(model, device)
    except TypeError as error:
        raise ValueError(f"{type(model).__name__} takes no position_ids ({error}): train without --packing") from None
    if isinstance(model, FSDPModule):  # an optimizer needs the root's shards, which a forward pass leaves unsharded
        model.reshard()


def make_output(run: Run) -> None:
    """Make the output folder, if the run begins, and record the launch in it."""
    if not run.resume:
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "config.yaml").write_text(yaml.safe_dump(asdict(run.config), sort_keys=False))
    (run.output / "launch").write_text(launch_id())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    batches: Batches,
    loss: Loss,
    checkpoints: Checkpoints,
    logger: Logger,
    selection: Selection,
    *,
    steps: range,
    total: int,
    seed: int,
    max_grad_norm: float,
    evaluation: list[Example],
    eval_every: int,
    save_every: int,
    preemption: PreemptionHandler,
    estimate: Estimate | None = None,
) -> int:
    """The training loop, for `steps` of the run or until it is preempted. Returns the number of steps done in all.

    It evaluates and checkpoints every so many steps (0: never) and after the last one.

    Args:
        steps: those to do of the run's `total`.
    """
    monitor, done = MemoryMonitor(model, loss.context.device), steps.start
    for step in steps:
        start = time.perf_counter()
        examples = batches[step]
        with seeded(seed, step, loss.context), monitor.step(step - steps.start) if estimate else nullcontext():
            measured = take_step(model, optimizer, schedule, examples, batches, loss, max_grad_norm)
        seconds = time.perf_counter() - start
        if estimate and step - steps.start == 1:
            logger.say(compare(estimate, monitor.used))
        done = step + 1
        record = {"step": done, **measured, "seconds": round(seconds, 4)}
        record["tokens_per_second"] = round(sum(len(example["input_ids"]) for example in examples) / seconds)
        stopped = preemption.requested(loss.context)
        ends = stopped or done == steps.stop
        regular = eval_every and done % eval_every == 0
        if evaluation and (ends or regular):
            record["eval_loss"] = evaluate(model, evaluation, batches, loss)
            if regular or done == total:  # an interruption must not add to what is compared
                selection.update(done, record["eval_loss"])
        ends = ends or selection.exhausted
        logger.log(record)
        if ends or (save_every and done % save_every == 0) or selection.kept_step == done:
            extra = {"schedule": schedule.state_dict(), "selection": selection.state_dict()}
            checkpoints.save(done, model, optimizer, extra, selection.kept_step)
        if ends:
            break
    return done


@contextmanager
def seeded(seed: int, step: int, context: DistributedContext) -> Iterator[None]:
    """Draw dropout from a stream of the step and this rank's part of the batch, within the block.

    So a resumed run draws as an undisturbed one does, and tensor-parallel ranks, which hold the same part, draw alike.
    """
    devices = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, step, context.dp_rank]).generate_state(1, np.uint64)[0]))
        yield


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    examples: list[Example],
    batches: Batches,
    loss: Loss,
    max_grad_norm: float,
) -> dict[str, float]:
    """One optimizer step on a global batch; returns its loss, learning rate and gradient norm."""
    mean = accumulate_gradients(model, examples, batches, loss)
    # Clipped before child-tuning masks: the norm is that of the whole gradient, as with every other optimizer.
    norm = clip_grad_norm_(model.parameters(), max_grad_norm)
    lr = schedule.get_last_lr()[0]
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return {"loss": mean, "lr": lr, "grad_norm": norm}


def estimate_run(run: Run, data: TrainingData) -> Estimate | None:
    """Print what this run will use at most, and estimate its step 2, before there is a process group."""
    batches = make_batches(run, data, run.context_before_launch())
    return print_memory_estimate(run, data.source, batches.local(batches[1]))


def export(run: Run, model: nn.Module, data: TrainingData, context: DistributedContext) -> None:
    """Write OUTPUT/model, an ordinary Hugging Face folder, and for a LoRA run OUTPUT/adapter beside it."""
    state = full_state_dict(model, trainable_only=run.lora)
    if not context.is_main_process:
        return
    if run.lora:
        folders = run.output / "adapter", run.output / "model"
        rows, quantised = data.train[:2], is_quantised(run.config)
        print(export_lora(state, run.lora_options, data.source, data.tokenizer, rows, *folders, quantised=quantised))
    else:
        export_weights(state, data.source, data.tokenizer, run.output / "model")


def main(arguments: list[str] | None = None) -> None:
    try:
        run = validate(parse_config(sys.argv[1:] if arguments is None else arguments))
        data = read_training_data(run)
    except (ValueError, OSError) as error:
        print_refusal(error)
        raise SystemExit(2) from None

    estimate = estimate_run(run, data) if run.config.estimate_memory and env_rank() == 0 else None

    def start(context: DistributedContext) -> None:
        try:
            if run.config.record:
                record_steps(run, data, context)
                return
            with PreemptionHandler() as preemption:
                fine_tune(run, data, context, preemption, estimate)
        except (CheckpointError, MergeError, OSError, FloatingPointError) as error:
            raise Refusal(str(error)) from error

    try:
        run_distributed(start, run.config.mesh, timedelta(minutes=run.config.timeout))
    except Refusal as error:
        print_refusal(error)
        raise SystemExit(2) from None
