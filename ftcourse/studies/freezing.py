"""Fine-tune on 200 questions under each freezing preset, or continue, and store one raw record per run.

    python -m ftcourse.studies.freezing
    python -m ftcourse.studies.freezing --model MODEL --output mine.jsonl

First each preset at two learning rates on one seed, then the better one on three other seeds. A run that is in the
output is not repeated; a preset that the model cannot take is reported and left out. Minutes on one core.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ftkit import freezing as presets
from ftkit.models import load_base, load_tokenizer
from ftkit.parameters import count_parameters, decay_groups

from .records import make_repeatable, run_missing, study_parser
from .tasks import WEIGHT_DECAY, Task, base_of, knowledge_by_domain, load_task, training_steps

TASK = "chat-200"
TUNING_SEED, SEEDS = 100, (0, 1, 2)
# Two rates each: the best two of a trial on seed 101, of rates about a factor of three apart.
RATES = {
    "everything": (3e-4, 1e-3),
    "first half frozen": (1e-3, 3e-3),
    "embeddings and norms": (3e-2, 1e-1),
    "head only": (3e-3, 1e-2),
    "added layers": (1e-3, 3e-3),
    "biases only": (3e-2, 1e-1),
    "norms only": (1e-1, 3e-1),
}


@dataclass(frozen=True)
class Trial:
    model: str  # folder or hub name, "" for pocket-base
    preset: str  # a name of RATES
    lr: float
    seed: int  # of rows, order and added layers: equal seeds see equal data


def apply_preset(model: nn.Module, preset: str) -> list[str]:
    """Set what trains by a name of RATES; returns its names. Raises ValueError where the model cannot take it."""
    half = getattr(model.config.get_text_config(), "num_hidden_layers", 0) // 2
    table: dict[str, Callable[[nn.Module], list[str]]] = {
        "everything": presets.everything,
        "first half frozen": lambda model: presets.freeze_first_layers(model, half),
        "embeddings and norms": presets.embeddings_and_norms,
        "head only": presets.head_only,
        "added layers": presets.add_layers,
        "biases only": presets.bitfit,
        "norms only": presets.norms_only,
    }
    return table[preset](model)


def run(trial: Trial) -> dict:
    """Train, evaluate at the end, and return the trial with what was counted and measured.

    `trainable` parameters, `optimizer_bytes`, `cpu_ms` of the median step, `cpu_seconds` of the run; `test_exact` and
    `heldout_domains_exact` (fractions), their losses (nats per token); and, by domain, the result of
    `knowledge_by_domain`.
    """
    start = time.process_time()  # not the clock on the wall: other programs slow that down
    torch.manual_seed(trial.seed)
    base = base_of(trial.model)
    task = load_task(TASK, trial.seed, base)
    apply_preset(task.model, trial.preset)
    optimizer = torch.optim.AdamW(decay_groups(task.model.named_parameters(), WEIGHT_DECAY), lr=trial.lr)
    cpu_ms = train(task, optimizer, trial.seed)
    task.model.eval()
    with torch.no_grad():
        scores = {measure: round(value, 4) for measure, value in task.evaluate(task.model).items()}
        by_domain = knowledge_by_domain(task.model, load_tokenizer(base))
    return {
        **asdict(trial),
        "trainable": count_parameters(task.model).trainable,
        "optimizer_bytes": optimizer_bytes(optimizer),
        "cpu_ms": round(cpu_ms, 1),
        **scores,
        **by_domain,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def train(task: Task, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """Train for the task's epochs; returns the median of a step's processor time, in milliseconds."""
    times = [time.process_time()]
    times += [time.process_time() for _ in training_steps(task, optimizer, seed)]
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(times))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the optimizer holds beside the parameters; for AdamW two moments, and a step count of 4 bytes a tensor."""
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if torch.is_tensor(value))


def best_rate(records: list[dict], model: str, preset: str) -> float:
    """The rate of the tuning run with most exact answers to held-out questions; of equals, with the least loss."""
    runs = [r for r in records if (r["model"], r["preset"], r["seed"]) == (model, preset, TUNING_SEED)]
    return max(runs, key=lambda r: (r["test_exact"], -r["test_loss"]))["lr"]


def possible_presets(model: str) -> list[str]:
    """The presets that the model can take; says why of the others."""
    possible = []
    for preset in RATES:
        try:
            apply_preset(load_base(base_of(model))[0], preset)
            possible.append(preset)
        except ValueError as error:
            print(f"without {preset!r}: {error}", file=sys.stderr)
    return possible


def main(arguments: list[str] | None = None) -> int:
    given = study_parser("freezing", __doc__, "model").parse_args(arguments)
    make_repeatable()
    names = possible_presets(given.model)
    tuning = [Trial(given.model, name, lr, TUNING_SEED) for name in names for lr in RATES[name]]
    records = run_missing(tuning, run, given.output, "rates")
    rates = {name: best_rate(records, given.model, name) for name in names}
    final = [Trial(given.model, name, rates[name], seed) for seed in SEEDS for name in names]
    run_missing(final, run, given.output, "presets")
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
