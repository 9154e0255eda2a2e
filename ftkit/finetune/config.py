"""The settings of a fine-tune: its flags, and what they mean once they are validated."""

import difflib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from ftkit._arguments import describe_unknown
from ftkit.distributed.checkpoint_folder import latest_checkpoint
from ftkit.distributed.device import DeviceInfo, pick_device
from ftkit.distributed.fsdp import check_compiler
from ftkit.distributed.launch import env_local_rank, env_rank, env_world_size, is_same_launch
from ftkit.distributed.mesh import DistributedContext, ParallelDims

from .lora import lora_options, validate_lora_flags
from .optimizers import OPTIMIZERS
from .quantised import validate_quantised
from .trackers import validate_trackers

# What may differ in a resumed run: nothing that changes what is computed.
RESUMABLE_FIELDS = (
    *("output", "resume", "stop_after", "save_every", "eval_every", "save_total_limit", "report_to"),
    *("micro_batch_size", "packing", "mesh"),
    *("reshard_after_forward", "activation_checkpointing", "loss_chunk", "compile"),
    *("compute_dtype", "estimate_memory", "timeout"),
)
DESCRIPTION = "Fine-tune a causal language model on conversations: one process on a CPU, or N GPUs on M nodes."
# What a number may be, in words and as a test.
POSITIVE = "a positive number", lambda value: value > 0
NOT_NEGATIVE = "0 or more", lambda value: value >= 0
BELOW_ONE = "0 to below 1", lambda value: 0 <= value < 1
LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("lora_r", "lora_alpha", "fisher_rows", "lr", "max_grad_norm", "epochs", "timeout"), POSITIVE),
    **dict.fromkeys(("batch_size", "micro_batch_size", "max_length"), POSITIVE),
    **dict.fromkeys(
        ("weight_decay", "max_steps", "eval_every", "save_every", "stop_after", "seed", "record"), NOT_NEGATIVE
    ),
    **dict.fromkeys(
        ("neftune_noise_alpha", "warmup_steps", "save_total_limit", "early_stopping_patience", "loss_chunk"),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), BELOW_ONE),
    "adam_epsilon": POSITIVE,
    "loraplus_lr_ratio": ("1 or more", lambda value: value >= 1),
    "warmup_ratio": ("0 to 1", lambda value: 0 <= value <= 1),
    "reserve_p": ("a probability above 0 and at most 1", lambda value: 0 < value <= 1),
}
# Those of transformers.SchedulerType that need nothing but the number of steps.
SCHEDULES = [
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
LARGEST = 1e9  # of every number: beyond it, seeds and time limits overflow


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
    lora_dropout: float = flag(0.0, "LoRA: dropout of the adapters' inputs")
    target_modules: str = flag(
        "all-linear", "LoRA: all-linear, ends of names separated by commas, or a regular expression for whole names"
    )
    modules_to_save: str = flag("", "LoRA: modules to train fully, ends of names separated by commas")
    trainable_token_indices: str = flag(
        "", "LoRA: rows of the embedding to train, tokens or ids separated by commas (digits are an id)"
    )
    use_dora: bool = flag(False, "LoRA: DoRA, which trains the magnitude of each output apart")
    use_rslora: bool = flag(False, "LoRA: scale adapters by lora_alpha / sqrt(lora_r)")
    loraplus_lr_ratio: float = flag(1.0, "LoRA+: learning rate of B over that of A")
    load_in_4bit: bool = flag(False, "QLoRA: quantise the frozen base to 4-bit NormalFloat by bitsandbytes")
    load_in_8bit: bool = flag(False, "LoRA: quantise the frozen base to 8 bits by bitsandbytes")
    neftune_noise_alpha: float = flag(0.0, "NEFTune: noise on the embeddings in training (default: none)")
    optimizer: str = flag(
        "adamw",
        "optimizer (8bit: bitsandbytes); -d trains only the reserve_p weights of largest Fisher information",
        choices=list(OPTIMIZERS),
    )
    reserve_p: float = flag(0.3, "child-tuning: chance that an entry keeps its gradient; -d: share kept")
    fisher_rows: int = flag(64, "child-tuning-d: examples that score the weights")
    freeze: str = flag("", "regular expression of the parameter names to freeze")
    adam_beta1: float = flag(0.9, "decay of the first moment")
    adam_beta2: float = flag(0.999, "decay of the second moment")
    adam_epsilon: float = flag(1e-08, "added to the root of the second moment")
    lr: float = flag(5e-05, "peak learning rate")
    weight_decay: float = flag(0.01, "of matrices; norm weights and biases have none")
    warmup_ratio: float = flag(0.1, "share of the steps with a rising learning rate")
    warmup_steps: int = flag(0, "steps with a rising learning rate (default: from warmup_ratio)")
    lr_scheduler_type: str = flag(
        "linear", "learning rate after the warmup, as transformers names its schedules", choices=SCHEDULES
    )
    max_grad_norm: float = flag(1.0, "clip the global gradient norm to this")
    epochs: float = flag(3.0, "passes over the data, rounded up to whole steps")
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
    loss_chunk: int = flag(0, "tokens whose logits exist at once, recomputed in backward: less memory (default: all)")
    compile: bool = flag(False, "torch.compile each decoder layer")
    estimate_memory: bool = flag(True, "print the estimated peak memory first")
    timeout: float = flag(10.0, "minutes that a rank waits for the others")
    eval_every: int = flag(0, "steps between evaluations (default: at the end only)")
    save_every: int = flag(0, "steps between checkpoints (default: at the end only)")
    save_total_limit: int = flag(1, "how many of the newest checkpoints to keep (0: all)")
    load_best_model_at_end: bool = flag(False, "keep the checkpoint of the lowest eval loss, and export that one")
    early_stopping_patience: int = flag(0, "stop after so many evaluations without a lower eval loss (0: never)")
    report_to: str = flag("", "experiment trackers, comma separated: tensorboard, wandb, trackio")
    stop_after: int = flag(0, "checkpoint after this step and stop, to resume later")
    resume: bool = flag(False, "continue from the newest checkpoint in the output folder")
    record: int = flag(0, "record so many first steps for `ftkit compare-runs` in the output folder, and end")
    seed: int = flag(0, "of the data order, dropout and the gradient masks")


@dataclass(frozen=True)
class Run:
    """A validated configuration, with its strings parsed: what the rest of the program works with."""

    config: Config
    dims: ParallelDims
    device_info: DeviceInfo
    compute_dtype: torch.dtype  # of activations and unsharded weights
    output: Path
    resume: bool  # asked for, or a restart of the launch that began the run
    trackers: list[str]  # names of --report_to

    @property
    def lora(self) -> bool:
        return self.config.method == "lora"

    @cached_property
    def lora_options(self) -> dict:
        """The arguments of `attach_lora`. Raises ValueError or OSError for tokens that the model lacks."""
        return lora_options(self.config)

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
    for item in fields(config):
        validate_value(item.name, item.type, getattr(config, item.name))
    dims = ParallelDims.parse(config.mesh, env_world_size())
    if config.method == "lora" and dims.tp > 1:
        raise ValueError("--method lora does not run under tensor parallelism: give --mesh with tp 1")
    if config.method == "lora" and config.freeze:
        raise ValueError("--method lora freezes the whole base: leave --freeze, choose with --target_modules")
    validate_lora_flags(config)
    validate_quantised(config, env_world_size())
    try:
        device_info = pick_device(env_local_rank(), env_world_size())
    except RuntimeError as error:  # more ranks than GPUs
        raise ValueError(str(error)) from None
    OPTIMIZERS[config.optimizer].check(device_info.device, env_world_size())
    trackers = validate_trackers(config.report_to)
    selects = next((n for n in ("load_best_model_at_end", "early_stopping_patience") if getattr(config, n)), None)
    if selects and not config.eval_every:
        raise ValueError(f"--{selects} compares evaluations: give --eval_every, the steps between them")
    if config.compile:
        check_compiler(device_info.device)
    if config.record and (config.compile or config.resume):
        raise ValueError("--record is for a run from its beginning, not compiled: leave --resume and --compile")
    auto = config.compute_dtype == "auto"
    dtype = device_info.compute_dtype if auto else getattr(torch, config.compute_dtype)
    output = Path(config.output)
    latest = latest_checkpoint(output / "checkpoints")
    resume = config.resume or (is_same_launch(output) and latest is not None)
    if resume:
        _validate_resume(config, output, latest)
    elif output.exists() and not is_same_launch(output):
        remedy = "give --resume to continue it, or another --output"
        if latest is None:
            begun = (output / "config.yaml").is_file()
            remedy = "its run has no complete checkpoint: remove it, or " * begun + "give another --output"
        raise FileExistsError(f"{output} exists: {remedy}")
    return Run(config, dims, device_info, dtype, output, resume, trackers)


def validate_value(name: str, kind: type, value: object) -> None:
    """Raise ValueError for a value of another type, outside the limit of its field, or not among its choices.

    The command line refuses some of these itself; a YAML file does not.
    """
    if choices(name) and value not in choices(name):
        raise ValueError(f"--{name} is {value!r}: give one of {', '.join(choices(name))}")
    words, holds = LIMITS.get(name, (f"a value of type {kind.__name__}", None))
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        whole = "a whole number, " if kind is int else ""
        raise ValueError(f"--{name} is {value!r}: give {whole}{words}")
    if holds and not (holds(value) and value <= LARGEST):  # NaN fails every comparison
        raise ValueError(f"--{name} is {value}: give {words}" + f", up to {LARGEST:g}" * (value > LARGEST))


def _validate_resume(config: Config, output: Path, latest: Path | None) -> None:
    if latest is None:
        raise ValueError(
            f"--resume: no complete checkpoint in {output / 'checkpoints'}: remove {output} if it exists, and start "
            "without --resume"
        )
    before = yaml.safe_load((output / "config.yaml").read_text())
    for name, value in asdict(config).items():
        was = before.get(name, Config.__dataclass_fields__[name].default)
        if name not in RESUMABLE_FIELDS and value != was:
            raise ValueError(
                f"--resume: --{name} is {value!r} and was {before.get(name)!r}: resume a run with its own settings, "
                "or start a new one in another folder"
            )


def parse_config(arguments: list[str]) -> Config:
    """The settings on a command line, or in the one YAML file that it names. Raises ValueError or OSError."""
    parser = HfArgumentParser(Config, prog="ftkit finetune", description=DESCRIPTION)
    if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
        return _read_yaml(Path(arguments[0]))
    config, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(describe_unknown(parser, unknown))
    return config


def _read_yaml(path: Path) -> Config:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or "output" not in values:
        raise ValueError(f"{path} lacks the key output: write one `name: value` per line, named as the flags are")
    known = Config.__dataclass_fields__
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"{path}: unknown key {name}" + (f" (did you mean {near[0]}?)" if near else ""))
        if known[name].type is float and isinstance(value, str):  # YAML takes 5e-5 for a text, and 5.0e-5 for a number
            with suppress(ValueError):
                values[name] = float(value)
    return Config(**values)
