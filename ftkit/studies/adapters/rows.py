"""What is compared: each row of the table a method with its options, and the rate its search begins at."""

from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

NEFTUNE_ALPHA = 5.0  # what Jain et al. 2023 and the compared fine-tunes use
ATTENTION, WHOLE = "attention", "embeddings and norms"  # what LoRA is put beside; what trains whole with it
BASE, REFERENCE = "base model", "lora"  # untrained; what the others' steps are timed against


@dataclass(frozen=True)
class Row:
    method: str  # of ftkit.adapters.METHODS
    start: float  # the first learning rate that is tried, with its two neighbours
    options: dict = field(default_factory=dict)  # of `attach`
    optimizer: dict = field(default_factory=dict)  # of `make_optimizer`
    targets: str = ""  # ATTENTION: its matrices only
    whole: bool = False  # embeddings and norms train with the adapter


FAMILY = {
    "full": Row("full", 1e-3),
    "child-tuning": Row("child-tuning", 1e-3),
    "head only": Row("head only", 1e-2),
    "bitfit": Row("bitfit", 1e-1),
    "lora": Row("lora", 1e-2),
    "dora": Row("dora", 1e-2),
    **{f"lora+ {r}": Row("lora+", 3e-3, optimizer={"loraplus_lr_ratio": r}) for r in (2, 4, 16, 20)},
    "lora, NEFTune": Row("lora", 1e-2, {"neftune_alpha": NEFTUNE_ALPHA}),
    "dora, NEFTune": Row("dora", 1e-2, {"neftune_alpha": NEFTUNE_ALPHA}),
    "prefix": Row("prefix", 1e-1),
    "llama-adapter": Row("llama-adapter", 1e-1),
}
TARGETING = {  # beside "lora", which is on attention and MLP
    "lora attention": Row("lora", 1e-2, targets=ATTENTION),
    f"lora attention, {WHOLE}": Row("lora", 3e-3, targets=ATTENTION, whole=True),
    f"lora, {WHOLE}": Row("lora", 3e-3, whole=True),
}
ROWS = FAMILY | TARGETING


def options_for(row: Row, model: PreTrainedModel) -> dict:
    """The options of `attach` on this model: names of modules differ between designs."""
    options = dict(row.options)
    if row.targets == ATTENTION:
        options["target_modules"] = attention_matrices(model)
    if row.whole:
        options["modules_to_save"] = embeddings_and_norms(model)
    return options


def attention_matrices(model: nn.Module) -> list[str]:
    """Names of the linear layers of the model's attention. Raises ValueError where none is found."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and "attn" in name.rpartition(".")[0].replace("attention", "attn")
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer under a name with attn or attention")
    return found


def embeddings_and_norms(model: PreTrainedModel) -> list[str]:
    """Embedding, output matrix and norms, by the last part of their names, as PEFT's `modules_to_save` wants them."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if id(module) in ends or "norm" in type(module).__name__.lower()
        }
    )
