"""What a fine-tune is told, and all that can be checked of it before a model is loaded or a file written."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ftkit.batches import Row, read_rows
from ftkit.distributed import mesh
from ftkit.distributed.checkpoint import latest_checkpoint
from ftkit.freezing import freeze
from ftkit.pocket import empty_base, find_base, find_chat

# What a resumed run may do differently from the run it resumes.
MAY_CHANGE = ("output", "resume", "stop_after", "save_every", "eval_every", "micro_batch_size")


@dataclass
class Config:
    """Every field is a flag of the same name, or a key of a YAML file."""

    output: str = field(
        metadata={"help": "folder for metrics, checkpoints and the model; must not exist yet"}
    )
    model: str = field(default="", metadata={"help": "model name or folder (default: pocket-base)"})
    data: str = field(
        default="", metadata={"help": "JSON lines of `messages` (default: the almanac's chats)"}
    )
    eval_data: str = field(
        default="", metadata={"help": "held-out JSON lines (default: the almanac's, with its data)"}
    )
    optimizer: str = field(
        default="adamw", metadata={"choices": ["adamw", "child-tuning"], "help": "optimizer"}
    )
    reserve_p: float = field(
        default=0.3, metadata={"help": "child-tuning: chance that an entry keeps its gradient"}
    )
    freeze: str = field(default="", metadata={"help": "regular expression of the parameter names to freeze"})
    lr: float = field(default=5e-5, metadata={"help": "peak learning rate"})
    weight_decay: float = field(
        default=0.01, metadata={"help": "of matrices; norm gains and biases have none"}
    )
    warmup_ratio: float = field(
        default=0.1, metadata={"help": "part of the steps with a rising learning rate"}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the global gradient norm to this"})
    epochs: float = field(default=3.0, metadata={"help": "passes over the data"})
    max_steps: int = field(default=0, metadata={"help": "optimizer steps in all (default: from epochs)"})
    batch_size: int = field(default=16, metadata={"help": "rows of a step, over all ranks"})
    micro_batch_size: int = field(default=8, metadata={"help": "rows of a forward pass on one rank"})
    max_length: int = field(default=512, metadata={"help": "longer conversations lose their end, in tokens"})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations: less memory"}
    )
    eval_every: int = field(
        default=0, metadata={"help": "steps between evaluations (default: at the end only)"}
    )
    save_every: int = field(
        default=0, metadata={"help": "steps between checkpoints (default: at the end only)"}
    )
    stop_after: int = field(
        default=0, metadata={"help": "checkpoint after this step and stop, to resume later"}
    )
    resume: bool = field(
        default=False, metadata={"help": "go on from the newest checkpoint in the output folder"}
    )
    seed: int = field(default=0, metadata={"help": "of the data order and the gradient masks"})


def check(config: Config) -> None:
    """Raise ValueError or FileExistsError, naming flag and remedy, before anything is loaded or written."""
    if not 0 < config.reserve_p <= 1:
        raise ValueError(f"--reserve_p is {config.reserve_p}: give a probability above 0 and at most 1")
    for name in ("lr", "epochs", "batch_size", "micro_batch_size", "max_length", "max_grad_norm"):
        if getattr(config, name) <= 0:
            raise ValueError(f"--{name} is {getattr(config, name)}: give a positive number")
    output = Path(config.output)
    if not config.resume:
        if output.exists():
            raise FileExistsError(f"{output} exists: give --resume to go on with it, or another --output")
        return
    if latest_checkpoint(output / "checkpoints") is None:
        raise ValueError(
            f"--resume: no complete checkpoint in {output / 'checkpoints'}; start without --resume"
        )
    before = yaml.safe_load((output / "config.yaml").read_text())
    for name, value in asdict(config).items():
        if name not in MAY_CHANGE and value != before.get(name):
            raise ValueError(
                f"--resume: --{name} is {value!r} and was {before.get(name)!r}: resume a run with its own settings, "
                "or start a new one in another folder"
            )


def check_freeze(pattern: str, source: str) -> None:
    """Raise ValueError for a pattern that freezes nothing, or everything, of the model at `source`."""
    model = empty_base(source)
    try:
        freeze(model, pattern)
    except ValueError as error:
        raise ValueError(f"--freeze: {error}") from None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {pattern!r} leaves nothing to train: give a narrower pattern")


@dataclass(frozen=True)
class Inputs:
    source: str  # model name or folder
    tokenizer: PreTrainedTokenizerBase
    train: list[Row]
    evaluation: list[Row]  # empty when there is nothing to evaluate on

    @property
    def pad_id(self) -> int:
        """What fills rows up; attention and loss mask hide it, so a missing pad token is no harm here."""
        return self.tokenizer.pad_token_id or 0


def read_inputs(config: Config) -> Inputs:
    """Find, read and tokenise; raises ValueError or OSError for anything that cannot be trained on."""
    source = find_base(config.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    vocabulary = AutoConfig.from_pretrained(source).get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the model embeds {vocabulary}: "
            "call model.resize_token_embeddings(len(tokenizer)) and save it"
        )
    if config.freeze:
        check_freeze(config.freeze, source)
    files = find_chat(config.data)
    paths = [files.get("train"), config.eval_data or files.get("test")]
    if paths[0] is None:
        raise FileNotFoundError(
            f"{config.data} has no train.jsonl: name one file, or a folder with train.jsonl"
        )
    sets = []
    for path in paths:
        encoded = read_rows(path, tokenizer, config.max_length) if path else None
        if encoded and encoded.truncated and mesh.launched_rank() == 0:
            print(
                f"{path}: {encoded.truncated} conversations lost their end at --max_length {config.max_length}"
            )
        sets.append(encoded.rows if encoded else [])
    rows, world_size = min(len(sets[0]), config.batch_size), mesh.launched_world_size()
    if world_size > rows:
        raise ValueError(
            f"{world_size} ranks share a batch of {rows} rows ({paths[0]} has {len(sets[0])}): "
            "start fewer ranks, raise --batch_size or bring more data"
        )
    return Inputs(source, tokenizer, *sets)
