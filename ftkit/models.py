"""Models and conversations by name: pocket-base and the almanac's chats unless something else is asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


class CustomCodeError(ValueError):
    """A model or tokenizer that only Python code of its own folder can run. We never run it."""


def resolve_model(name: str | Path | None = None) -> str:
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
    source = resolve_model(name)
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
    return AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False, **options)


def meta_model(source: str) -> PreTrainedModel:
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


def data_dir() -> Path:
    """The folder with the almanac and pocket-base: inside an installed wheel, or `data/` of a checkout."""
    package = Path(__file__).parent
    return package / "data" if (package / "data").is_dir() else package.parent / "data"
