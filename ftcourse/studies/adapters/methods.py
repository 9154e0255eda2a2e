"""What is compared (each method an `Arm`), and the search for each one's learning rate: half a decade up or down until
the best one has a worse one on either side."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

STEPS = range(-10, 2)  # half decades: 1e-5, 3e-5, 1e-4, … 3


def rate(step: int) -> float:
    """10**(step / 2), to one digit: 1e-5, 3e-5, 1e-4."""
    return float(f"{3 if step % 2 else 1}e{step // 2}")


GRID = [rate(step) for step in STEPS]


def rates_to_try(scores: Mapping[float, Any], start: float) -> list[float]:
    """Which rates of GRID to try next, given the scores (higher is better) of those tried; [] when the best of them
    has both its neighbours tried.

    Raises ValueError for a start that is not in GRID.
    """
    if start not in GRID:
        raise ValueError(f"{start:g} is no rate of the grid: give one of {', '.join(f'{r:g}' for r in GRID)}")
    centre = GRID.index(max(scores, key=scores.__getitem__) if scores else start)
    around = GRID[max(centre - 1, 0) : centre + 2]
    return [r for r in around if r not in scores]


NEFTUNE_ALPHA = 5.0  # what Jain et al. 2023 and the compared fine-tunes use
ATTENTION, WHOLE = "attention", "embeddings and norms"  # what LoRA is put beside; what trains whole with it
BASE, REFERENCE = "base model", "lora"  # untrained; what the others' steps are timed against


@dataclass(frozen=True)
class Arm:
    method: str  # of ftkit.adapters.METHODS
    start: float  # the first learning rate that is tried, with its two neighbours
    options: dict = field(default_factory=dict)  # of `attach`
    optimizer: dict = field(default_factory=dict)  # of `make_optimizer`
    targets: str = ""  # ATTENTION: its matrices only
    whole: bool = False  # embeddings and norms train with the adapter


FAMILY = {
    "full": Arm("full", 1e-3),
    "child-tuning": Arm("child-tuning", 1e-3),
    "head only": Arm("head only", 1e-2),
    "bitfit": Arm("bitfit", 1e-1),
    "lora": Arm("lora", 1e-2),
    "dora": Arm("dora", 1e-2),
    **{f"lora+ {r}": Arm("lora+", 3e-3, optimizer={"loraplus_lr_ratio": r}) for r in (2, 4, 16, 20)},
    "lora, NEFTune": Arm("lora", 1e-2, {"neftune_alpha": NEFTUNE_ALPHA}),
    "dora, NEFTune": Arm("dora", 1e-2, {"neftune_alpha": NEFTUNE_ALPHA}),
    "prefix": Arm("prefix", 1e-1),
    "llama-adapter": Arm("llama-adapter", 1e-1),
}
TARGETING = {  # beside "lora", which is on attention and MLP
    "lora attention": Arm("lora", 1e-2, targets=ATTENTION),
    f"lora attention, {WHOLE}": Arm("lora", 3e-3, targets=ATTENTION, whole=True),
    f"lora, {WHOLE}": Arm("lora", 3e-3, whole=True),
}
ARMS = FAMILY | TARGETING


def options_for(row: Arm, model: PreTrainedModel) -> dict:
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
        if isinstance(module, nn.Linear | Conv1D) and "attn" in name.rpartition(".")[0].replace("attention", "attn")
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
