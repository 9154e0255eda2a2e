"""Train with one contender, in a process of its own, and write down each step's time and loss.

    python -m experiments.real_model.worker SETTINGS.json OUT.json

Both programs are timed by the same hook, torch's own behind every optimizer step: a step lasts from the end of the one
before it to its own end, with everything that the program does in between. The first few steps are a warm-up, because
ftkit measures its memory in the first two of them. TRL gets the examples in ftkit's order, adapters that start with
the same values, and float32, because it would train in bfloat16 by default; everything else is each program's default.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.optim.optimizer import register_optimizer_step_post_hook

FTKIT, TRL, TRL_KEEPING = "ftkit", "TRL", "TRL without gradient checkpointing"
CONTENDERS = (FTKIT, TRL, TRL_KEEPING)
WEIGHT_DECAY, WARM_UP_RATIO = 0.01, 0.1


@dataclass(frozen=True)
class Settings:
    """What all contenders share, but for `contender` itself."""

    contender: str  # one of CONTENDERS
    model: str  # folder
    data: str  # JSON lines of conversations of one turn
    method: str  # "full" or "lora"
    steps: int
    lr: float
    batch_size: int = 8  # over all ranks
    micro_batch_size: int = 0  # of a rank; 0: all its examples of a step
    ranks: int = 1  # processes; both programs ask for FSDP2
    max_length: int = 512
    seed: int = 0

    @property
    def micro(self) -> int:
        return self.micro_batch_size or self.batch_size // self.ranks


class Clock:
    """Wall-clock and processor time at the end of every optimizer step, and the peak memory until then."""

    def __init__(self):
        self.wall, self.processor, self.peak_bytes = [], [], 0
        self.handle = register_optimizer_step_post_hook(self._note)

    def _note(self, *_) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())  # of all threads
        self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(settings: Settings, folder: Path, store: Callable[[dict], None] = lambda found: None) -> dict:
    """Train in `folder` and return the raw figures of this process: seconds and CPU seconds of every step but the
    first, losses, peak of resident bytes. `store` gets them at once: ftkit's ranks end the process behind a run."""
    clock, found = Clock(), {}

    def finish(losses: list[float]) -> None:
        clock.handle.remove()
        found.update(
            contender=settings.contender,
            method=settings.method,
            losses=losses,
            seconds=[b - a for a, b in pairwise(clock.wall)],
            cpu_seconds=[b - a for a, b in pairwise(clock.processor)],
            peak_rss_bytes=clock.peak_bytes,
        )
        store(found)

    (run_ftkit if settings.contender == FTKIT else run_trl)(settings, folder, finish)
    return found


def run_ftkit(settings: Settings, folder: Path, finish: Callable[[list[float]], None]) -> None:
    from ftkit.distributed.launch import env_rank
    from ftkit.finetune import train

    def losses() -> list[float]:
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines() if env_rank() == 0 else []
        return [json.loads(line)["loss"] for line in lines]

    train.export = lambda *_: finish(losses())  # it comes behind the last step, and is not what is compared
    flags = {"output": folder / "run", "model": settings.model, "data": settings.data, "method": settings.method}
    flags |= {"max_steps": settings.steps, "lr": settings.lr, "seed": settings.seed, "max_length": settings.max_length}
    flags |= {"batch_size": settings.batch_size, "micro_batch_size": settings.micro}
    flags |= {"weight_decay": WEIGHT_DECAY, "warmup_ratio": WARM_UP_RATIO}
    train.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])


def shard_on_processors() -> None:
    """Let accelerate shard on processors as it does on accelerators: by itself, it takes FSDP for DDP on them."""
    from accelerate.state import AcceleratorState, DistributedType

    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **options) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def run_trl(settings: Settings, folder: Path, finish: Callable[[list[float]], None]) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from ftkit.finetune.config import Config
    from ftkit.finetune.lora import attach_lora, lora_options, reset_adapters
    from ftkit.models import load_causal_lm, load_tokenizer

    model = load_causal_lm(settings.model, dtype=torch.float32)
    if settings.method == "lora":
        model = attach_lora(model, **lora_options(Config(output="")))  # as the program's flags are by default
        reset_adapters(model, settings.seed)
    if settings.ranks > 1:
        shard_on_processors()
    args = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=settings.batch_size // settings.micro // settings.ranks,
        max_length=settings.max_length,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=round(WARM_UP_RATIO * settings.steps),
        weight_decay=WEIGHT_DECAY,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **({"fsdp": True, "fsdp_config": {"version": 2}} if settings.ranks > 1 else {}),
        **({"gradient_checkpointing": False} if settings.contender == TRL_KEEPING else {}),
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(prompts_and_completions(settings)),
        processing_class=load_tokenizer(settings.model),
    )
    trainer.train()
    if settings.ranks > 1 and not any(isinstance(part, FSDPModule) for part in trainer.model_wrapped.modules()):
        raise RuntimeError("accelerate has not sharded the model: the comparison would be with DDP")
    finish([row["loss"] for row in trainer.state.log_history if "loss" in row])


def in_order(settings: Settings) -> list[list[dict]]:
    """The conversations of every step, as `ftkit.finetune` draws them."""
    from ftkit.batching import global_batch

    rows = [json.loads(line) for line in Path(settings.data).read_text(encoding="utf-8").splitlines()]
    return [global_batch(rows, step, settings.batch_size, settings.seed) for step in range(settings.steps)]


def prompts_and_completions(settings: Settings) -> list[dict]:
    """The examples in the order of training, in TRL's conversational form, whose loss is on the completion."""
    rows = [row["messages"] for batch in in_order(settings) for row in batch]
    return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in rows]


def main(arguments: list[str]) -> None:
    given, out = map(Path, arguments)
    settings = Settings(**json.loads(given.read_text(encoding="utf-8")))
    folder = given.parent / "work"  # the same for all ranks
    folder.mkdir(exist_ok=True)
    file = out.with_suffix(f".{os.environ.get('RANK', 0)}")
    run(settings, folder, lambda found: file.write_text(json.dumps(found), encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
