"""What a fine-tune works on: found, read, tokenised and checked, before a model is loaded or a file written."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ftkit.batching import Example, read_rows
from ftkit.conversations import find_chat
from ftkit.distributed import launch, mesh, tensor_parallel
from ftkit.freezing import freeze
from ftkit.models import load_config, load_tokenizer, meta_model, resolve_model

from .config import Config
from .lora import attach_lora


@dataclass(frozen=True)
class TrainingData:
    source: str  # model name or folder
    tokenizer: PreTrainedTokenizerBase
    train: list[Example]
    evaluation: list[Example]  # empty when there is nothing to evaluate on

    @property
    def pad_id(self) -> int:
        """What fills rows up; attention and loss mask hide it, so a missing pad token is no harm here."""
        return self.tokenizer.pad_token_id or 0


def read_training_data(config: Config) -> TrainingData:
    """Find, read and tokenise; raises ValueError or OSError for anything that cannot be trained on."""
    source = resolve_model(config.model)
    model_config = load_config(source)  # before the tokenizer, for it refuses what needs code
    tokenizer = load_tokenizer(source)
    vocabulary = model_config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the model embeds {vocabulary}: "
            "call model.resize_token_embeddings(len(tokenizer)) and save it"
        )
    shape = mesh.ParallelDims.parse(config.mesh, launch.env_world_size())
    if shape.tp > 1:
        tensor_parallel.validate_tp_degree(model_config, shape.tp)
    if config.method == "lora":
        attach_lora(meta_model(source), config.lora_r, config.lora_alpha, config.target_modules)
    elif config.freeze:
        check_freeze(config.freeze, source)
    files = find_chat(config.data)
    paths = [files.get("train"), config.eval_data or files.get("test")]
    if paths[0] is None:
        raise FileNotFoundError(f"{config.data} has no train.jsonl: name one file, or a folder with train.jsonl")
    sets = []
    for path in paths:
        encoded = read_rows(path, tokenizer, config.max_length) if path else None
        if encoded and encoded.truncated and launch.env_rank() == 0:
            print(f"{path}: {encoded.truncated} conversations lost their end at --max_length {config.max_length}")
        sets.append(encoded.rows if encoded else [])
    rows, parts = min(len(sets[0]), config.batch_size), shape.dp_replicate * shape.dp_shard
    if parts > rows:
        raise ValueError(
            f"{parts} ranks share a batch of {rows} rows ({paths[0]} has {len(sets[0])}): "
            "start fewer ranks, raise --batch_size or bring more data"
        )
    return TrainingData(source, tokenizer, *sets)


def check_freeze(pattern: str, source: str) -> None:
    """Raise ValueError for a pattern that freezes nothing, or everything, of the model at `source`."""
    model = meta_model(source)
    try:
        freeze(model, pattern)
    except ValueError as error:
        raise ValueError(f"--freeze: {error}") from None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {pattern!r} leaves nothing to train: give a narrower pattern")
