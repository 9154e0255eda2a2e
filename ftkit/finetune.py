"""Fine-tune a causal language model on conversations: one process on a CPU, or N GPUs on M nodes.

    python -m ftkit.finetune --output runs/first
    torchrun --nproc-per-node 2 -m ftkit.finetune --output runs/sharded --optimizer child-tuning
    torchrun --nproc-per-node 8 -m ftkit.finetune run.yaml

The batch size is global, and the loss is the mean over all unmasked tokens of the global batch: any number
of ranks computes the same thing. Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, get_scheduler

from ftkit.batches import Row, global_batch, micro_batches, steps_per_epoch, unmasked_tokens
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.conversations import IGNORE_INDEX
from ftkit.distributed import mesh
from ftkit.distributed.checkpoint import Checkpoints, full_state_dict, latest_checkpoint
from ftkit.distributed.delayed_init import load_from_rank0
from ftkit.distributed.mesh import Ranks
from ftkit.distributed.preemption import Preemption
from ftkit.distributed.sharding import shard
from ftkit.evaluate import stop_token_ids
from ftkit.freezing import freeze
from ftkit.optim import decay_groups
from ftkit.pocket import empty_base
from ftkit.run_config import Config, Inputs, check, read_inputs


def load_model(config: Config, source: str, ranks: Ranks) -> nn.Module:
    """The model to train, in float32 master weights; sharded where there are several ranks."""

    def prepare(model: nn.Module) -> nn.Module:
        if config.freeze:
            freeze(model, config.freeze)
        if config.activation_checkpointing:
            # transformers renames the method; both take torch.utils.checkpoint's arguments first.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        return model.train()

    def full() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)

    compute = ranks.compute
    if ranks.mesh is None:
        return prepare(full().to(compute.device))
    return load_from_rank0(
        build_empty=lambda: prepare(empty_base(source)),
        build_full=full,
        shard=lambda model: shard(model, ranks.mesh, compute.compute_dtype),
        device=compute.device,
    )


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    groups = decay_groups(model.named_parameters(), config.weight_decay)
    if config.optimizer == "child-tuning":
        return ChildTuningAdamW(groups, lr=config.lr, reserve_p=config.reserve_p, seed=config.seed)
    return torch.optim.AdamW(groups, lr=config.lr)


def summed_loss(model: nn.Module, batch: dict[str, torch.Tensor], ranks: Ranks) -> torch.Tensor:
    """Cross-entropy summed over the unmasked tokens of a micro-batch, in nats."""
    compute = ranks.compute
    batch = {name: tensor.to(compute.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
    mixed = ranks.mesh is None and compute.compute_dtype != torch.float32  # FSDP2 casts by itself
    with torch.autocast(compute.device.type, compute.compute_dtype, enabled=mixed):
        logits = model(**batch, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def backward(model: nn.Module, batch: list[Row], inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Accumulate the gradient of the global batch's mean loss; returns that loss in nats a token."""
    tokens, total = unmasked_tokens(batch), 0.0
    mine = micro_batches(batch, config.micro_batch_size, inputs.pad_id, ranks.rank, ranks.world_size)
    for i, micro_batch in enumerate(mine, start=1):
        if ranks.mesh is not None:
            model.set_requires_gradient_sync(i == len(mine))
        loss = summed_loss(model, micro_batch, ranks)
        # FSDP averages over ranks, and the mean wanted is over tokens: hence the world size.
        (loss * ranks.world_size / tokens).backward()
        total += loss.item()
    return ranks.sum(total) / tokens


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Mean loss over the unmasked tokens of the evaluation rows, in nats."""
    model.eval()
    mine = micro_batches(
        inputs.evaluation, config.micro_batch_size, inputs.pad_id, ranks.rank, ranks.world_size
    )
    total = ranks.sum(sum(summed_loss(model, batch, ranks).item() for batch in mine))
    model.train()
    return total / unmasked_tokens(inputs.evaluation)


def train(config: Config, inputs: Inputs, ranks: Ranks, preemption: Preemption) -> None:
    output = Path(config.output)
    model = load_model(config, inputs.source, ranks)
    optimizer = make_optimizer(config, model)  # after sharding: it must hold the sharded parameters
    steps = config.max_steps or round(config.epochs * steps_per_epoch(inputs.train, config.batch_size))
    schedule = get_scheduler("linear", optimizer, round(config.warmup_ratio * steps), steps)
    first = 0
    about = {"model": inputs.source, "optimizer": config.optimizer}
    checkpoints = Checkpoints(output / "checkpoints", about, ranks)
    if config.resume:
        saved = checkpoints.load(model, optimizer, {"schedule": schedule.state_dict()})
        schedule.load_state_dict(saved["schedule"])
        first = saved["step"]
    metrics = MetricsFile(output / "metrics.jsonl", first) if ranks.is_first else None
    last = min(steps, config.stop_after or steps)
    progress = tqdm(
        range(first, last), initial=first, total=last, desc="fine-tune", disable=not ranks.is_first
    )
    for step in progress:
        start = time.perf_counter()
        batch = global_batch(inputs.train, step, config.batch_size, config.seed)
        loss = backward(model, batch, inputs, config, ranks)
        # Clipped before child-tuning masks: the norm is that of the whole gradient, as in every other run.
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm, "seconds": round(seconds, 4)}
        row["tokens_per_second"] = round(sum(len(r["input_ids"]) for r in batch) / seconds)
        leave = preemption.asked(ranks)
        done = leave or step + 1 == last
        if inputs.evaluation and (done or (config.eval_every and (step + 1) % config.eval_every == 0)):
            row["eval_loss"] = evaluate(model, inputs, config, ranks)
        if metrics:
            metrics.write(row)
            progress.set_postfix(loss=f"{loss:.3f}")
        if done or (config.save_every and (step + 1) % config.save_every == 0):
            checkpoints.save(step + 1, model, optimizer, {"schedule": schedule.state_dict()})
        if leave:
            break
    checkpoints.finish()
    last = step + 1 if first < last else last
    if last == steps:
        export(model, inputs, output / "model", ranks)
    elif ranks.is_first:
        print(f"stopped after step {last} of {steps}: run the same command with --resume to go on")


class MetricsFile:
    """One JSON object a line; a resumed run drops the lines of steps that it will do again."""

    def __init__(self, path: Path, first_step: int):
        kept = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in kept if json.loads(line)["step"] <= first_step]
        path.write_text("".join(line + "\n" for line in kept))
        self.path = path

    def write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def export(model: nn.Module, inputs: Inputs, folder: Path, ranks: Ranks) -> None:
    """Write an ordinary Hugging Face folder, in the dtype that the base model had, and only when it is whole."""
    state = full_state_dict(model)
    if not ranks.is_first:
        return
    config = AutoConfig.from_pretrained(inputs.source)
    plain = empty_base(inputs.source)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.to(config.dtype or torch.float32)
    # Whoever loads the folder shall stop where the chat template ends a turn.
    plain.generation_config.eos_token_id = stop_token_ids(plain, inputs.tokenizer)
    temporary = folder.with_suffix(".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    plain.save_pretrained(temporary)
    inputs.tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = HfArgumentParser(Config, prog="python -m ftkit.finetune", description=__doc__.partition("\n")[0])
    try:
        if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
            (config,) = parser.parse_yaml_file(arguments[0])
        else:
            (config,) = parser.parse_args_into_dataclasses(arguments)
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        config.resume = config.resume or (
            restarted and latest_checkpoint(Path(config.output, "checkpoints")) is not None
        )
        check(config)
        inputs = read_inputs(config)
    except (ValueError, OSError) as error:
        if mesh.launched_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(3)  # torchrun ends every rank when the first one fails: let rank 0 speak
        raise SystemExit(2) from None

    def start(ranks: Ranks) -> None:
        ranks.barrier()  # every rank has seen that the output folder is free
        if ranks.is_first and not config.resume:
            Path(config.output).mkdir(parents=True)
            Path(config.output, "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
        ranks.barrier()
        with Preemption() as preemption:
            train(config, inputs, ranks, preemption)

    mesh.run(start)


if __name__ == "__main__":
    main()
