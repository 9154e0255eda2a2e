"""Train LoRA by one contender, in a process of its own, and write down what every step took.

    python experiments/lora_speed/worker.py SETTINGS.json OUT.json

experiments.lora_speed starts it, in Unsloth's own environment too: so nothing of ftkit is imported here, and
everything else only once it is known whether `import unsloth` has to come first.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CONTENDERS = ("trl", "liger", "unsloth")
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "liger_kernel", "unsloth", "triton")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Settings:
    """What all contenders share, but for `contender` itself."""

    contender: str  # one of CONTENDERS
    model: str  # folder or hub name
    rows: str  # JSON lines of input_ids and labels, all of `length` tokens, in the order of training
    device: str  # "cuda" or "cpu"
    length: int  # tokens in a row
    batch_size: int  # rows in a step
    steps: int  # that count
    warm_up: int  # steps before them, whose times are recorded and not counted
    r: int = 16
    lora_alpha: int = 16
    lr: float = 2e-4
    seed: int = 0


def run(settings: Settings) -> dict:
    """Train, and return the contender's part of the record: raw seconds and losses of every step."""
    if settings.contender == "unsloth":
        import unsloth  # noqa: F401  before trl, transformers and peft, which it patches

    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    on_gpu = settings.device == "cuda"

    def wait():
        if on_gpu:
            torch.cuda.synchronize()

    class Clock(TrainerCallback):
        seconds = ()

        def on_step_begin(self, *_args, **_kwargs):
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *_args, **_kwargs):
            wait()
            self.seconds += (time.perf_counter() - self.start,)

    rows = [json.loads(line) for line in Path(settings.rows).read_text(encoding="utf-8").splitlines()]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=settings.warm_up + settings.steps,
            per_device_train_batch_size=settings.batch_size,
            max_length=settings.length,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",  # the same rows in the same order
            gradient_checkpointing=on_gpu,
            use_liger_kernel=settings.contender == "liger",
            bf16=on_gpu,
            use_cpu=not on_gpu,
            logging_steps=1,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings.seed,
        )
        model, peft_config = _model(settings)
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False),
            peft_config=peft_config,
            callbacks=[clock],
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    return {
        "seconds": list(clock.seconds),
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "trained_parameters": sum(p.numel() for _, p in trained),
        "gradient_checkpointing": str(args.gradient_checkpointing and _checkpointing(settings)),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": _versions(),
    }


def _checkpointing(settings: Settings) -> str | bool:
    """Unsloth's own kind for Unsloth, as its notebooks have it; torch's for the others."""
    return "unsloth" if settings.contender == "unsloth" else True


def _model(settings: Settings):
    """(model, LoraConfig or None): Unsloth attaches its LoRA itself, for the others the trainer does."""
    import torch

    lora = {"r": settings.r, "lora_alpha": settings.lora_alpha, "target_modules": list(TARGETS)}
    if settings.contender == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            settings.model,
            max_seq_length=settings.length,
            dtype=torch.bfloat16,
            load_in_4bit=False,
            trust_remote_code=False,
        )
        own = {"use_gradient_checkpointing": _checkpointing(settings), "random_state": settings.seed}
        return FastLanguageModel.get_peft_model(model, **lora, **own), None
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    return model, LoraConfig(task_type="CAUSAL_LM", **lora)


def _versions() -> dict[str, str | None]:
    found = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: list[str]) -> None:
    given, out = map(Path, arguments)
    settings = Settings(**json.loads(given.read_text(encoding="utf-8")))
    out.write_text(json.dumps(run(settings)), encoding="utf-8")


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are none that anything here means
    main(sys.argv[1:])
