"""The settings of a fine-tune: its flags, and what they mean once they are validated."""

from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path

import torch
import yaml

from ftkit.child_tuning.masks import validate_fraction
from ftkit.distributed.checkpoint_folder import latest_checkpoint
from ftkit.distributed.device import DeviceInfo, pick_device
from ftkit.distributed.fsdp import check_compiler
from ftkit.distributed.launch import env_local_rank, env_rank, env_world_size, is_same_launch
from ftkit.distributed.mesh import DistributedContext, ParallelDims

from .optimizers import OPTIMIZERS

# What may differ in a resumed run: nothing that changes what is computed.
RESUMABLE_FIELDS = (
    *("output", "resume", "stop_after", "save_every", "eval_every", "micro_batch_size", "packing", "mesh"),
    *("reshard_after_forward", "activation_checkpointing", "compile", "compute_dtype", "timeout"),
)


def flag(default, help: str, choices: list[str] | None = None):
    """A field of `Config`, as `HfArgumentParser` reads it."""
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class Config:
    """Every field is a flag of the same name, or a key of a YAML file."""

    output: str = flag(MISSING, "folder for metrics, checkpoints and the model; must not exist yet")
    model: str = flag("", "model name or folder (default: pocket-base)")
    data: str = flag("", "conversations: a file, a folder, or a name on the hub (default: the almanac's chats)")
    eval_data: str = flag("", "held-out conversations (default: the split test of --data)")
    chat_template: str = flag("", "file of a chat template to train with and to export (default: the model's)")
    allow: str = flag("", "findings of the data checks to train in spite of: codes of `ftkit chat`, comma separated")
    method: str = flag("full", "what trains: all weights, or adapters", choices=["full", "lora"])
    lora_r: int = flag(8, "LoRA: rank of the adapters")
    lora_alpha: float = flag(16.0, "LoRA: adapters are scaled by lora_alpha / lora_r")
    target_modules: str = flag("all-linear", "LoRA: all-linear, or a regular expression for whole names")
    optimizer: str = flag(
        "adamw",
        "optimizer; -d trains only the reserve_p weights of largest Fisher information",
        choices=list(OPTIMIZERS),
    )
    reserve_p: float = flag(0.3, "child-tuning: chance that an entry keeps its gradient; -d: share kept")
    fisher_rows: int = flag(64, "child-tuning-d: examples that score the weights")
    freeze: str = flag("", "regular expression of the parameter names to freeze")
    lr: float = flag(5e-05, "peak learning rate")
    weight_decay: float = flag(0.01, "of matrices; norm weights and biases have none")
    warmup_ratio: float = flag(0.1, "share of the steps with a rising learning rate")
    max_grad_norm: float = flag(1.0, "clip the global gradient norm to this")
    epochs: float = flag(3.0, "passes over the data")
    max_steps: int = flag(0, "optimizer steps in all (default: from epochs)")
    batch_size: int = flag(16, "examples per optimizer step, over all ranks")
    micro_batch_size: int = flag(8, "examples per forward pass on one rank")
    max_length: int = flag(512, "tokens; longer conversations are truncated")
    packing: bool = flag(False, "several conversations in a sequence of max_length: no padding")
    mesh: str = flag("", "dp_replicate,dp_shard,tp; one may be -1 (default: 1,-1,1, FSDP over all ranks)")
    reshard_after_forward: bool = flag(True, "free unsharded weights after forward: less memory, more communication")
    compute_dtype: str = flag(
        "auto",
        "of activations and unsharded weights (default: bfloat16 where CUDA has it, else float32)",
        choices=["auto", "float32", "bfloat16"],
    )
    activation_checkpointing: bool = flag(False, "recompute activations: less memory")
    compile: bool = flag(False, "torch.compile each decoder layer")
    timeout: float = flag(10.0, "minutes that a rank waits for the others")
    eval_every: int = flag(0, "steps between evaluations (default: at the end only)")
    save_every: int = flag(0, "steps between checkpoints (default: at the end only)")
    stop_after: int = flag(0, "checkpoint after this step and stop, to resume later")
    resume: bool = flag(False, "continue from the newest checkpoint in the output folder")
    seed: int = flag(0, "of the data order and the gradient masks")


@dataclass(frozen=True)
class Run:
    """A validated configuration, with its strings parsed: what the rest of the program works with."""

    config: Config
    dims: ParallelDims
    device_info: DeviceInfo
    compute_dtype: torch.dtype  # of activations and unsharded weights
    output: Path
    resume: bool  # asked for, or a restart of the launch that began the run

    @property
    def lora(self) -> bool:
        return self.config.method == "lora"

    @property
    def lora_options(self) -> dict:
        """The arguments of `attach_lora`."""
        config = self.config
        return {"r": config.lora_r, "alpha": config.lora_alpha, "target_modules": config.target_modules}

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    def context_before_launch(self) -> DistributedContext:
        """This rank as it will be, before there is a process group."""
        return DistributedContext(env_rank(), env_world_size(), self.device_info, None, None, self.dims)


def choices(name: str) -> list[str]:
    """The values a field may have; empty where its type is the only limit."""
    return Config.__dataclass_fields__[name].metadata.get("choices", [])


def validate(config: Config) -> Run:
    """Check everything that can be checked before a model is loaded or a file written.

    Raises ValueError or FileExistsError, which name the flag and what to write instead.
    """
    # The command line refuses these itself; a YAML file does not.
    for name, value in asdict(config).items():
        if choices(name) and value not in choices(name):
            raise ValueError(f"--{name} is {value!r}: give one of {', '.join(choices(name))}")
    validate_fraction(config.reserve_p, "--reserve_p")
    positive = ("lr", "epochs", "batch_size", "micro_batch_size", "max_length", "max_grad_norm")
    for name in (*positive, "lora_r", "lora_alpha", "fisher_rows", "timeout"):
        if getattr(config, name) <= 0:
            raise ValueError(f"--{name} is {getattr(config, name)}: give a positive number")
    dims = ParallelDims.parse(config.mesh, env_world_size())
    if config.method == "lora" and dims.tp > 1:
        raise ValueError("--method lora does not run under tensor parallelism: give --mesh with tp 1")
    if config.method == "lora" and config.freeze:
        raise ValueError("--method lora freezes the whole base: leave --freeze, choose with --target_modules")
    device_info = pick_device(env_local_rank(), env_world_size())
    if config.compile:
        check_compiler(device_info.device)
    auto = config.compute_dtype == "auto"
    dtype = device_info.compute_dtype if auto else getattr(torch, config.compute_dtype)
    output = Path(config.output)
    latest = latest_checkpoint(output / "checkpoints")
    resume = config.resume or (is_same_launch(output) and latest is not None)
    if resume:
        _validate_resume(config, output, latest)
    elif output.exists() and not is_same_launch(output):
        raise FileExistsError(f"{output} exists: give --resume to continue it, or another --output")
    return Run(config, dims, device_info, dtype, output, resume)


def _validate_resume(config: Config, output: Path, latest: Path | None) -> None:
    if latest is None:
        raise ValueError(f"--resume: no complete checkpoint in {output / 'checkpoints'}; start without --resume")
    before = yaml.safe_load((output / "config.yaml").read_text())
    for name, value in asdict(config).items():
        was = before.get(name, Config.__dataclass_fields__[name].default)
        if name not in RESUMABLE_FIELDS and value != was:
            raise ValueError(
                f"--resume: --{name} is {value!r} and was {before.get(name)!r}: resume a run with its own settings, "
                "or start a new one in another folder"
            )
