"""Find and load causal language models and tokenizers by name, without running custom code. Default: pocket-base."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
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
    """A model or tokenizer needs custom Python code from its own folder, which ftkit never runs."""


def resolve_model(name: str | Path | None = None) -> str:
    """The model folder or hub name: `name`, else the environment variable FTKIT_MODEL, else pocket-base.

    Raises FileNotFoundError for a local path without a model in safetensors.
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
    """Load a causal language model and its tokenizer, in the checkpoint's dtype, on the CPU; `name` as `resolve_model`.

    Only safetensors are read. Raises CustomCodeError for a model that needs custom code.
    """
    source = resolve_model(name)
    load_config(source)  # first, because it refuses models that need custom code
    tokenizer = load_tokenizer(source)
    return load_causal_lm(source, dtype="auto"), tokenizer


def load_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a causal language model. Raises CustomCodeError where it needs custom code, ValueError
    where its values are impossible.

    An `auto_map` alone does not: many published models have one although transformers now implements them.
    """
    try:
        with _refuse_custom_code(source, "config.json"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ValueError(f"{source}: its config.json is not valid: {error.__cause__ or error}") from None
    own = getattr(config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CustomCodeError(_needs_code(source, "config.json"))
    return config


def explain_two_heads(source: str | Path, head: str, embedding: str) -> str:
    """The error for files that hold two tensors which the model's configuration ties."""
    return (
        f"the config.json of {source} ties {head} to {embedding}, but the files hold two different tensors: write "
        f'"tie_word_embeddings": false there if both were trained, or remove {head} from the files'
    )


def check_not_quantised(config: PreTrainedConfig) -> None:
    """Raise ValueError for the configuration of a quantised model, whose weights cannot be trained as they are."""
    for part in (config, config.get_text_config()):
        if found := getattr(part, "quantization_config", None):
            found = found if isinstance(found, dict) else found.to_dict()
            raise ValueError(
                f"{config.name_or_path} is quantised with {found.get('quant_method', 'an unknown method')} "
                "(quantization_config in its config.json): give the unquantised model"
            )


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises CustomCodeError where it needs custom code."""
    with _refuse_custom_code(source, "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_causal_lm(source: str | Path, **options):
    """`AutoModelForCausalLM.from_pretrained` from safetensors only. Raises as `load_config`, and for damaged files."""
    load_config(source)
    try:
        return AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, trust_remote_code=False, **options)
    except SafetensorError as error:
        raise ValueError(f"a file of {source} is damaged or cut off ({error}): copy it there again") from None


def meta_model(source: str) -> PreTrainedModel:
    """The model on the meta device: names and shapes in float32, without weights."""
    config = load_config(source)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def data_dir() -> Path:
    """The folder with the almanac and pocket-base: in the installed package, or `data/` of a checkout."""
    package = Path(__file__).parent
    return package / "data" if (package / "data").is_dir() else package.parent / "data"


@contextmanager
def _refuse_custom_code(source: str | Path, file: str) -> Iterator[None]:
    """Replace the error of transformers, which advises to trust the code."""
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
