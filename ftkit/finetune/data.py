"""The data of a run: found, read, tokenised and checked before a model is loaded or a file is written."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ftkit.batching import (
    Example,
    global_batch,
    micro_batches,
    packed_micro_batches,
    steps_per_epoch,
    unmasked_tokens,
)
from ftkit.chat import RULES, examine, finding_codes, length_quantiles, mask_text, max_positions
from ftkit.conversations import find_chat, read_source
from ftkit.distributed.launch import env_rank
from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.tensor_parallel import check_tp_dropout, tp_plan_of, validate_tp_degree
from ftkit.findings import allow
from ftkit.freezing import freeze
from ftkit.loss import IGNORE_INDEX
from ftkit.models import check_not_quantised, load_config, load_tokenizer, meta_model, resolve_model

from .config import Config, Run
from .lora import validate_lora
from .tokenised import TokenisedExamples, is_large, tokenise

HELD_OUT = ("test", "validation", "eval", "dev")  # names of a split to evaluate on, the first that there is


@dataclass(frozen=True)
class TrainingData:
    source: str  # model name or folder
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Example]
    evaluation: Sequence[Example]  # empty when there is nothing to evaluate on

    @property
    def pad_id(self) -> int:
        """What fills sequences up. Attention and loss mask hide it, so a missing pad token does no harm here."""
        return self.tokenizer.pad_token_id or 0

    @property
    def digest(self) -> str:
        """Of the tokenised training data: a resumed run must have the same."""
        if isinstance(self.train, TokenisedExamples):
            return self.train.digest
        digest = hashlib.sha256()
        for row in self.train:
            for values in row["input_ids"], row["labels"]:
                digest.update(array("q", [len(values), *values]).tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Batches:
    """The global batch of each step, the same on every rank, and this rank's micro-batches of it."""

    examples: Sequence[Example]
    batch_size: int  # examples, over all ranks
    micro_batch_size: int
    max_length: int  # tokens of a packed sequence
    packing: bool
    seed: int
    pad_id: int
    dp_rank: int
    dp_size: int

    def __getitem__(self, step: int) -> list[Example]:
        return global_batch(self.examples, step, self.batch_size, self.seed)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.examples, self.batch_size)

    def local(self, examples: list[Example]) -> list[dict[str, torch.Tensor]]:
        """This rank's micro-batches of `examples`: as many as every other rank's.

        Longest first, so that a micro-batch and all ranks' micro-batches of one turn hold like lengths: less padding
        and waiting, the same mean over the same tokens. What needs most memory comes first.
        """
        place = self.pad_id, self.dp_rank, self.dp_size
        if self.packing:  # which sorts by itself
            return packed_micro_batches(examples, self.micro_batch_size, self.max_length, *place)
        examples = sorted(examples, key=lambda example: -len(example["input_ids"]))  # stable: the same on every rank
        return micro_batches(examples, self.micro_batch_size, *place)


def make_batches(run: Run, data: TrainingData, context: DistributedContext) -> Batches:
    config = run.config
    sizes = config.batch_size, config.micro_batch_size, config.max_length, config.packing
    return Batches(data.train, *sizes, config.seed, data.pad_id, context.dp_rank, context.dp_size)


def read_training_data(run: Run) -> TrainingData:
    """Find, read and tokenise. Raises ValueError or OSError for anything that cannot be trained on."""
    config = run.config
    source = resolve_model(config.model)
    model_config = load_config(source)  # before the tokenizer, because it refuses models that need code
    check_not_quantised(model_config)
    tokenizer = load_tokenizer(source)
    if config.chat_template:
        tokenizer.chat_template = read_template(config.chat_template)
    vocabulary = model_config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens and the model embeds {vocabulary}: "
            "call model.resize_token_embeddings(len(tokenizer)) and save it"
        )
    if run.dims.tp > 1:
        tp_plan_of(meta_model(source))
        validate_tp_degree(model_config, run.dims.tp)
        check_tp_dropout(model_config)
    if run.lora:
        validate_lora(meta_model(source), run.dims.world_size, run.lora_options)
    elif config.freeze:
        validate_freeze(config.freeze, source)
    files = find_chat(config.data)
    held_out = next((files[name] for name in HELD_OUT if name in files), None)
    paths = [files.get("train"), config.eval_data or held_out]
    if paths[0] is None:
        raise FileNotFoundError(
            f"{config.data} has the splits {', '.join(files)} and no train: name one file, or a folder with train.jsonl"
        )
    if paths[1] is None and (config.load_best_model_at_end or config.early_stopping_patience):
        raise ValueError("there is nothing to evaluate on, so no checkpoint is the best one: give --eval_data")
    positions = max_positions(model_config)
    sets = [read_examples(path, tokenizer, config, positions) if path else [] for path in paths]
    if env_rank() == 0:
        print(f"first example, with the loss between ⟦ and ⟧:\n{mask_text(tokenizer, sets[0][0])}", flush=True)
    batch, parts = min(len(sets[0]), config.batch_size), run.dims.dp_replicate * run.dims.dp_shard
    if parts > batch:
        raise ValueError(
            f"{parts} ranks share a batch of {batch} examples ({paths[0]} has {len(sets[0])}): "
            "start fewer ranks, raise --batch_size or bring more data"
        )
    return TrainingData(source, tokenizer, *sets)


def read_examples(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, config: Config, positions: int | None
) -> Sequence[Example]:
    """Read, check and tokenise the conversations of a file, truncated at `max_length`.

    Rank 0 prints what they are and each warning. Raises ValueError for errors of the checks that --allow does not name.
    """
    progress = env_rank() == 0
    large = (
        tokenise(Path(path), tokenizer, config.max_length, positions, progress) if is_large(path, tokenizer) else None
    )
    if large:
        form, notes, findings, quantiles = large.format, large.notes, large.findings, large.quantiles
        examples = large.examples
    else:
        source = read_source(path)
        given = {"positions": positions, "places": source.places, "progress": progress}
        examined = examine(tokenizer, source.rows, config.max_length, **given)
        form, notes, findings = source.format, source.notes, examined.findings
        quantiles = length_quantiles(examined.lengths)
        examples = [{name: v[: config.max_length] for name, v in row.items()} for row in examined.examples]
    found = allow(findings, filter(None, config.allow.split(",")), RULES)
    if wrong := [f for f in found if f.severity == "error"]:
        said = "\n".join(f"{path}: {f.observed} ({f.code}). {f.remedy}" for f in wrong)
        raise ValueError(f"{said}\nTo train all the same, give --allow {','.join(finding_codes(wrong))}")
    if not any(unmasked_tokens([example]) for example in examples):
        raise ValueError(f"{path}: every label of every example is {IGNORE_INDEX}: there is nothing to learn from it")
    if env_rank() == 0:
        tokens = ", ".join(f"{name} {n}" for name, n in quantiles.items())
        print(f"{Path(path).name}: {len(examples)} examples ({form}); tokens of an example: {tokens}")
        for line in notes + [f"warning: {f.observed} ({f.code})" for f in found if f.severity == "warning"]:
            print(line)
    return examples


def read_template(path: str) -> str:
    """The Jinja text of --chat_template. Raises ValueError or FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"--chat_template: no file at {path}: give a file of Jinja, such as chat_template.jinja"
        )
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--chat_template: {path} is not UTF-8 text ({error.reason})") from None


def validate_freeze(pattern: str, source: str) -> None:
    """Raise ValueError for a pattern that freezes nothing, or everything, of the model at `source`."""
    model = meta_model(source)
    try:
        freeze(model, pattern)
    except ValueError as error:
        raise ValueError(f"--freeze: {error}") from None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {pattern!r} leaves nothing to train: give a narrower pattern")
