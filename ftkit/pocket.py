"""Models and conversations by name: pocket-base and the almanac's chats unless something else is asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftkit.almanac import data_dir
from ftkit.conversations import read_conversations

if TYPE_CHECKING:
    from datasets import DatasetDict


class CustomCodeError(ValueError):
    """A model or tokenizer that only Python code of its own folder can run. We never run it."""


def find_base(name: str | Path | None = None) -> str:
    """The model folder or hub name that `load_base` opens.

    `name`; else the environment variable FTKIT_MODEL; else pocket-base. Raises FileNotFoundError for a local
    path that holds no model in safetensors.
    """
    source = str(name or os.environ.get("FTKIT_MODEL") or data_dir() / "pocket-base")
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json: is it the folder of a Hugging Face model?")
        if not list(folder.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{folder} has no *.safetensors. ftkit reads no pickled weights: "
                "load the model where you trust it and save it again with model.save_pretrained(folder)"
            )
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"no model folder at {source}")
    return source


def load_base(name: str | Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in the checkpoint's own dtype, on the CPU.

    `name` as in `find_base`. Only safetensors are read and no code of the model's is run: raises CustomCodeError
    where that would be needed.
    """
    source = find_base(name)
    load_config(source)  # refuses what needs code before anything else is loaded
    tokenizer = load_tokenizer(source)
    return load_causal_lm(source, dtype="auto"), tokenizer


def load_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a causal language model. Raises CustomCodeError where only code of its own can run it.

    An `auto_map` alone is no reason: many published folders have one, and transformers implements their architecture
    itself by now.
    """
    with _no_code_of(source, "config.json"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    own = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CustomCodeError(_needs_code(source, "config.json"))
    return config


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Raises CustomCodeError for a tokenizer that only code of its own can run."""
    with _no_code_of(source, "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_causal_lm(source: str | Path, **options):
    """`AutoModelForCausalLM.from_pretrained`, from safetensors only, and as `load_config` refuses."""
    load_config(source)
    return AutoModelForCausalLM.from_pretrained(
        source, use_safetensors=True, trust_remote_code=False, **options
    )


def empty_base(source: str) -> PreTrainedModel:
    """The model of a folder or hub name on meta: names, shapes and float32, and no weights."""
    config = load_config(source)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


@contextmanager
def _no_code_of(source: str | Path, file: str) -> Iterator[None]:
    """Say in our words that transformers refused: its own advise to trust the code."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise CustomCodeError(_needs_code(source, file)) from None


def _needs_code(source: str | Path, file: str) -> str:
    return (
        f"{source} needs Python code of its own (auto_map in its {file}), and ftkit never runs that: give a model "
        "whose architecture transformers itself implements"
    )


def find_chat(name: str | Path | None = None) -> dict[str, Path]:
    """The JSON-lines files that `load_chat` reads, by split.

    `name` is a .jsonl file (the split "train") or a folder of them (a split a file); else the environment
    variable FTKIT_DATA; else the almanac's chats. Raises FileNotFoundError where there is none.
    """
    source = Path(name or os.environ.get("FTKIT_DATA") or data_dir() / "chat")
    if not source.is_dir():
        return {"train": source}
    if not (files := {path.stem: path for path in sorted(source.glob("*.jsonl"))}):
        raise FileNotFoundError(f"{source} holds no .jsonl file of conversations")
    return files


def load_chat(name: str | Path | None = None) -> "DatasetDict":
    """Load conversations (`messages`); `name` as in `find_chat`.

    The almanac's splits are train, test (held-out questions) and heldout_domains. Raises ConversationError
    or FileNotFoundError for what is not chat data.
    """
    from datasets import Dataset, DatasetDict  # here, for ranks that do not need it start a second sooner

    return DatasetDict(
        {k: Dataset.from_list(read_conversations(path)) for k, path in find_chat(name).items()}
    )
