"""Record how full fine-tuning, LoRA and DoRA move each matrix, in magnitude and in direction.

    python -m ftcourse.studies.dora

The scatter of DoRA's paper (Liu et al. 2024, figure 2), on pocket-base: each matrix of the layers is a point at each
of four moments of a run. The learning rates are the best ones of `trade_off`. Minutes on one core.
"""

import copy
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel
from torch import nn

from ftcourse.studies.adapters.methods import ARMS, options_for
from ftkit.adapters import attach, make_optimizer
from ftkit.batching import steps_per_epoch

from . import trade_off
from .records import make_repeatable, run_missing, sort_records, study_parser, write_records
from .tasks import BATCH_SIZE, WEIGHT_DECAY, base_of, load_task, training_steps

TASK, SEEDS, MOMENTS = trade_off.TASK, (0, 1, 2, 3, 4), 4
METHODS = {"full": trade_off.FULL, "lora": trade_off.LORA, "dora": trade_off.DORA}  # of ARMS: its name there


@dataclass(frozen=True)
class Trial:
    row: str  # a name of METHODS
    lr: float
    seed: int


def movement(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """How far a matrix (out, in) has moved: mean over its rows of |change of length|, and of 1 - cosine.

    DoRA's paper takes the vectors of W x by columns of another layout; PEFT, as here, one vector for each output.
    """
    before, after = before.double(), after.double()
    length = (after.norm(dim=1) - before.norm(dim=1)).abs().mean()
    direction = 1 - nn.functional.cosine_similarity(before, after, dim=1).mean()
    return length.item(), direction.item()


@torch.no_grad()
def layer_matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a copy's linear layers, adapters merged, by the base model's names."""
    whole = copy.deepcopy(model)
    whole = whole.merge_and_unload() if isinstance(whole, PeftModel) else whole
    return {
        name: module.weight.detach()
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear) and module is not whole.get_output_embeddings()
    }


def run(trial: Trial) -> dict:
    """The trial, and `points`: [moment, matrix, change of length, change of direction], moments 1 to MOMENTS."""
    torch.manual_seed(trial.seed)
    task = load_task(TASK, trial.seed, base_of(""))
    before, row = layer_matrices(task.model), ARMS[trial.row]
    model = attach(task.model, row.method, **options_for(row, task.model))
    optimizer = make_optimizer(model, row.method, trial.lr, weight_decay=WEIGHT_DECAY, seed=trial.seed)
    steps = task.epochs * steps_per_epoch(task.train, BATCH_SIZE)
    moments = {round(steps * m / MOMENTS): m for m in range(1, MOMENTS + 1)}
    points = []
    # The adapter is in task.model's own layers, so that training the one trains the other.
    for step, _ in enumerate(training_steps(task, optimizer, trial.seed), start=1):
        if moment := moments.get(step):
            for name, after in layer_matrices(model).items():
                length, direction = movement(before[name], after)
                points.append([moment, name, float(f"{length:.4g}"), float(f"{direction:.4g}")])
    return {**asdict(trial), "points": points}


def correlation(records: list[dict], row: str, wanted: Callable[[int, str], bool]) -> list[float]:
    """Of length with direction, a number a seed, over the points whose moment and matrix are `wanted`."""
    return [
        statistics.correlation(*zip(*chosen_points(record, wanted), strict=True))
        for record in records
        if record["row"] == row
    ]


def chosen_points(record: dict, wanted: Callable[[int, str], bool]) -> list[tuple[float, float]]:
    """(change of direction, change of length) of the points that are wanted."""
    return [(turn, length) for moment, name, length, turn in record["points"] if wanted(moment, name)]


def main(arguments: list[str] | None = None) -> int:
    given = study_parser("dora", __doc__).parse_args(arguments)
    make_repeatable()
    compared = trade_off.read()
    rates = {row: compared.best(trade_off.trial(name)) for row, name in METHODS.items()}
    trials = [Trial(row, rates[row], seed) for seed in SEEDS for row in METHODS]
    records = run_missing(trials, run, given.output, "matrices")
    write_records(given.output, sort_records(records, Trial))
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
