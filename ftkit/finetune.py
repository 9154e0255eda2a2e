"""Fine-tune a causal language model on conversations: one process on a CPU, or N GPUs on M nodes.

    python -m ftkit.finetune --output runs/first
    torchrun --nproc-per-node 2 -m ftkit.finetune --output runs/sharded --optimizer child-tuning
    torchrun --nproc-per-node 8 -m ftkit.finetune run.yaml

The batch size is global, and the loss is the mean over all unmasked tokens of the global batch: any number
of ranks, on any mesh, computes the same thing. Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

import math
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, HfArgumentParser, get_scheduler

from ftkit.batches import Row, global_batch, micro_batches, steps_per_epoch, unmasked_tokens
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask, load_masks, save_masks
from ftkit.conversations import IGNORE_INDEX
from ftkit.device import pick_device
from ftkit.distributed import mesh, same_launch
from ftkit.distributed.checkpoint import Checkpoints, full_state_dict, latest_checkpoint
from ftkit.distributed.clip import clip_grad_norm
from ftkit.distributed.compiled import check_compiler, compile_layers
from ftkit.distributed.lora import attach_lora, file_name, reset_adapters
from ftkit.distributed.mesh import Ranks
from ftkit.distributed.preemption import Preemption
from ftkit.distributed.shard_loading import load_shards
from ftkit.distributed.sharding import shard
from ftkit.distributed.tensor_parallel import parallelize
from ftkit.exporting import export_lora, export_weights
from ftkit.freezing import freeze
from ftkit.metrics_file import MetricsFile
from ftkit.optim import decay_groups
from ftkit.packing import check_no_leak, packed_micro_batches
from ftkit.pocket import empty_base
from ftkit.run_config import Config, check
from ftkit.run_inputs import Inputs, read_inputs


def load_model(config: Config, source: str, ranks: Ranks) -> nn.Module:
    """The model to train: master weights in float32, sharded where there are several ranks."""
    lora, compute = config.method == "lora", compute_dtype(config, ranks)

    def prepare(model: nn.Module) -> nn.Module:
        if config.activation_checkpointing:
            # transformers renames the method; both take torch.utils.checkpoint's arguments first.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        if config.compile:
            compile_layers(model)
        if lora:  # a frozen base needs no master weights
            model = attach_lora(model.to(compute), config.lora_r, config.lora_alpha, config.target_modules)
        elif config.freeze:
            freeze(model, config.freeze)
        return model.train()

    def split(model: nn.Module) -> nn.Module:
        if ranks.tp_mesh is not None:
            model = parallelize(model, ranks.tp_mesh)
        return shard(model, ranks.mesh, compute, config.reshard_after_forward)

    def initialise(model: nn.Module) -> None:
        reset_adapters(model, config.seed)

    if ranks.mesh is None:
        whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        model = prepare(whole.to(ranks.compute.device))
        initialise(model)
        return model
    return load_shards(
        build_empty=lambda: prepare(empty_base(source)),
        shard=split,
        source=source,
        device=ranks.compute.device,
        file_name=file_name if lora else lambda name: name,
        initialise=initialise,
    )


def compute_dtype(config: Config, ranks: Ranks) -> torch.dtype:
    """The dtype of activations and of gathered weights."""
    return (
        ranks.compute.compute_dtype
        if config.compute_dtype == "auto"
        else getattr(torch, config.compute_dtype)
    )


def make_optimizer(config: Config, model: nn.Module, inputs: Inputs, ranks: Ranks) -> torch.optim.Optimizer:
    groups = decay_groups(model.named_parameters(), config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    child = {"reserve_p": config.reserve_p, "seed": config.seed}
    if config.optimizer == "child-tuning-d":
        child |= {"mode": "task-dependent", "gradient_mask": child_masks(config, model, inputs, ranks)}
    return ChildTuningAdamW(groups, lr=config.lr, **child)


def child_masks(config: Config, model: nn.Module, inputs: Inputs, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The weights of largest Fisher information on the first rows of the first epoch, kept for a resumed run."""
    path = Path(config.output, "masks.safetensors")
    if not config.resume:
        rows = global_batch(inputs.train, 0, min(config.fisher_rows, len(inputs.train)), config.seed)
        each = tqdm(rows, desc="Fisher information", disable=not ranks.is_first)
        # Every rank takes every row: only the average of equal gradients is an example's gradient.
        batches = (micro_batches([row], 1, inputs.pad_id, 0, 1)[0] for row in each)

        def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return summed_loss(model, batch, config, ranks) / (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

        save_masks(fisher_mask(model, batches, config.reserve_p, loss=loss), path)
    return load_masks(path)


def summed_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], config: Config, ranks: Ranks
) -> torch.Tensor:
    """Cross-entropy summed over the unmasked tokens of a micro-batch, in nats."""
    device, compute = ranks.compute.device, compute_dtype(config, ranks)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
    mixed = ranks.mesh is None and compute != torch.float32  # FSDP2 casts by itself
    with torch.autocast(device.type, compute, enabled=mixed):
        logits = model(**batch, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def own_part(rows: list[Row], config: Config, inputs: Inputs, ranks: Ranks) -> list[dict[str, torch.Tensor]]:
    """This rank's micro-batches of a global batch, as many as every other rank's."""
    place = inputs.pad_id, ranks.data_rank, ranks.data_size
    if config.packing:
        return packed_micro_batches(rows, config.micro_batch_size, config.max_length, *place)
    return micro_batches(rows, config.micro_batch_size, *place)


def backward(model: nn.Module, batch: list[Row], inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Accumulate the gradient of the global batch's mean loss; returns that loss in nats a token."""
    tokens, total = unmasked_tokens(batch), 0.0
    mine = own_part(batch, config, inputs, ranks)
    for i, micro_batch in enumerate(mine, start=1):
        if ranks.mesh is not None:
            model.set_requires_gradient_sync(i == len(mine))
        loss = summed_loss(model, micro_batch, config, ranks)
        # FSDP averages over the parts of the batch, and the mean wanted is over tokens: hence their number.
        (loss * ranks.data_size / tokens).backward()
        total += loss.item()
    mean = ranks.sum(total) / tokens
    if not math.isfinite(mean):
        raise RuntimeError(f"the loss is {mean}: lower --lr, or look for rows that break the model")
    return mean


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Mean loss over the unmasked tokens of the evaluation rows, in nats."""
    model.eval()
    mine = own_part(inputs.evaluation, config, inputs, ranks)
    total = ranks.sum(sum(summed_loss(model, batch, config, ranks).item() for batch in mine))
    model.train()
    return total / unmasked_tokens(inputs.evaluation)


def train(config: Config, inputs: Inputs, ranks: Ranks, preemption: Preemption) -> None:
    output = Path(config.output)
    model = load_model(config, inputs.source, ranks)
    if config.packing:
        check_no_leak(model, ranks.compute.device)
    optimizer = make_optimizer(
        config, model, inputs, ranks
    )  # after sharding: it holds the sharded parameters
    steps = config.max_steps or round(config.epochs * steps_per_epoch(inputs.train, config.batch_size))
    schedule = get_scheduler("linear", optimizer, round(config.warmup_ratio * steps), steps)
    about = {"model": inputs.source, "method": config.method, "optimizer": config.optimizer}
    checkpoints = Checkpoints(output / "checkpoints", about, ranks)
    first = 0
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
        norm = clip_grad_norm(model.parameters(), config.max_grad_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm, "seconds": round(seconds, 4)}
        row["tokens_per_second"] = round(sum(len(r["input_ids"]) for r in batch) / seconds)
        if preemption.asked(ranks):
            last = step + 1
        done = step + 1 == last
        if inputs.evaluation and (done or (config.eval_every and (step + 1) % config.eval_every == 0)):
            row["eval_loss"] = evaluate(model, inputs, config, ranks)
        if metrics:
            metrics.write(row)
            progress.set_postfix(loss=f"{loss:.3f}")
        if done or (config.save_every and (step + 1) % config.save_every == 0):
            checkpoints.save(step + 1, model, optimizer, {"schedule": schedule.state_dict()})
        if done:
            break
    checkpoints.finish()
    if last == steps:
        export(model, inputs, config, ranks)
    elif ranks.is_first:
        print(f"stopped after step {last} of {steps}: run the same command with --resume to go on")


def export(model: nn.Module, inputs: Inputs, config: Config, ranks: Ranks) -> None:
    """Write `OUTPUT/model`, an ordinary Hugging Face folder, and of a LoRA run `OUTPUT/adapter` beside it."""
    lora, output = config.method == "lora", Path(config.output)
    state = full_state_dict(model, trainable_only=lora)
    if not ranks.is_first:
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
        again = same_launch.belongs(output) and latest_checkpoint(output / "checkpoints") is not None
        config.resume = config.resume or again
        check(config)
        if config.compile:
            check_compiler(pick_device().device)
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
            output.mkdir(parents=True, exist_ok=True)
            (output / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
        if ranks.is_first:
            (output / "launch").write_text(same_launch.launch_id())
        ranks.barrier()
        with Preemption() as preemption:
            train(config, inputs, ranks, preemption)

    mesh.run(start, config.mesh, timedelta(minutes=config.timeout))


if __name__ == "__main__":
    main()
