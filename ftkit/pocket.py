"""Models and conversations by name: pocket-base and the almanac's chats unless something else is asked for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftkit.almanac import data_dir
from ftkit.conversations import read_conversations

if TYPE_CHECKING:
    from datasets import DatasetDict


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

    `name` as in `find_base`. Only safetensors are read and no code of the model's is run.
    """
    source = find_base(name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    return AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True), tokenizer


def empty_base(source: str) -> PreTrainedModel:
    """The model of a folder or hub name on meta: names, shapes and float32, and no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)


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
