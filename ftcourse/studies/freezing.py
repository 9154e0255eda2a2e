"""Fine-tune on two chat tasks under each freezing preset, or continue, and store one raw record per run.

    python -m ftcourse.studies.freezing
    python -m ftcourse.studies.freezing --model MODEL --output mine.jsonl

Each preset has its own learning rate, bracketed on validation questions (`bracketing`), then final runs on other seeds
and test questions. Full fine-tuning also runs at its lower rates on the final seeds, into a second file whose name ends
in "_curve": what it has learnt and still knows at each, to compare the presets with at equal learning. A run that is in
the output is not repeated; a preset that the model cannot take is reported and left out. 20 minutes on one core.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ftkit import freezing as presets
from ftkit.models import data_dir, load_base, load_tokenizer
from ftkit.parameters import count_parameters, decay_groups

from .bracketing import SEEDS, BracketedStudy, run_bracketed, scores
from .records import (
    make_repeatable,
    read_records,
    run_missing,
    sort_records,
    study_parser,
    write_records,
)
from .tasks import WEIGHT_DECAY, Task, base_of, knowledge_by_domain, load_task, training_steps

BRACKETED = data_dir() / "results" / "freezing.jsonl"
TASKS = ("chat-96", "chat-200")
FULL = "everything"
LEARNING_RATES = {  # to begin with, a factor of 3 apart
    FULL: (3e-4, 9e-4, 2.7e-3),
    "first half frozen": (9e-4, 2.7e-3, 8.1e-3),
    "second half frozen": (9e-4, 2.7e-3, 8.1e-3),
    "attention only": (9e-4, 2.7e-3, 8.1e-3),
    "MLP only": (9e-4, 2.7e-3, 8.1e-3),
    "embeddings and norms": (8.1e-3, 2.43e-2, 7.29e-2),
    "head only": (2.7e-3, 8.1e-3, 2.43e-2),
    "added layers": (9e-4, 2.7e-3, 8.1e-3),
    "biases only": (8.1e-3, 2.43e-2, 7.29e-2),
    "norms only": (2.43e-2, 7.29e-2, 2.19e-1),
}
ATTENTION = r"(^|\.)(self_attn|attn|attention)\."
MLP = r"(^|\.)(mlp|feed_forward|ffn)\."


@dataclass(frozen=True)
class Trial:
    model: str  # folder or hub name, "" for pocket-base
    task: str  # as `load_task` takes it
    preset: str  # a name of LEARNING_RATES
    lr: float
    seed: int  # of examples, order and added layers: equal seeds see equal data


def apply_preset(model: nn.Module, preset: str) -> list[str]:
    """Set what trains by a name of LEARNING_RATES; returns its names. Raises ValueError where the model cannot."""
    half = getattr(model.config.get_text_config(), "num_hidden_layers", 0) // 2
    table: dict[str, Callable[[nn.Module], list[str]]] = {
        FULL: presets.everything,
        "first half frozen": lambda model: presets.freeze_first_layers(model, half),
        "second half frozen": lambda model: _all_but(model, presets.freeze_first_layers(model, half)),
        "attention only": lambda model: presets.train_only(model, ATTENTION),
        "MLP only": lambda model: presets.train_only(model, MLP),
        "embeddings and norms": presets.embeddings_and_norms,
        "head only": presets.head_only,
        "added layers": presets.add_layers,
        "biases only": presets.bitfit,
        "norms only": presets.norms_only,
    }
    return table[preset](model)


def _all_but(model: nn.Module, names: list[str]) -> list[str]:
    presets.everything(model)
    presets.freeze(model, lambda name, _: name in names)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def run(trial: Trial) -> dict:
    """Train, evaluate at the end, and return the trial with what was counted and measured.

    `trainable` parameters, `optimizer_bytes`, `cpu_ms` of the median step, `cpu_seconds` of the run; what
    `bracketing.scores` gives; and, by domain, the fraction of facts that `knowledge_by_domain` finds still known, and
    their loss in nats per token.
    """
    start = time.process_time()  # not the clock on the wall: other programs slow that down
    torch.manual_seed(trial.seed)
    base = base_of(trial.model)
    task = load_task(trial.task, trial.seed, base, validation=True)
    apply_preset(task.model, trial.preset)
    optimizer = torch.optim.AdamW(decay_groups(task.model.named_parameters(), WEIGHT_DECAY), lr=trial.lr)
    cpu_ms = train(task, optimizer, trial.seed)
    measured = scores(task, trial.seed)
    with torch.no_grad():
        by_domain = knowledge_by_domain(task.model, load_tokenizer(base))
    return {
        **asdict(trial),
        "trainable": count_parameters(task.model).trainable,
        "optimizer_bytes": optimizer_bytes(optimizer),
        "cpu_ms": round(cpu_ms, 1),
        **measured,
        "pages_right": by_domain["pages_right"],
        "pages_nats": by_domain["pages_loss"],
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


def retention(record: dict) -> float:
    """Fraction of facts still answered in the pretraining format: the mean over domains."""
    return statistics.fmean(record["pages_right"].values())


def curve_path(path: Path) -> Path:
    """The file of full fine-tuning at the rates below its best, beside the study's own."""
    return path.with_stem(f"{path.stem}_curve")


def read_study(path: Path = BRACKETED) -> BracketedStudy:
    return BracketedStudy.read(path, Trial)


def read_curve(task: str, path: Path = BRACKETED) -> dict[int, list[dict]]:
    """Full fine-tuning of pocket-base up to its best rate: records by final seed, lowest rate first."""
    best = read_study(path).runs(Trial("", task, FULL, 0, 0))
    records = [*read_records(curve_path(path)), *best.values()]
    return {
        seed: sorted((r for r in records if r["task"] == task and r["seed"] == seed), key=lambda r: r["lr"])
        for seed in best
    }


def retention_at(curve: list[dict], score: float, measure: str = "test_exact") -> float:
    """What full fine-tuning still knows where its `measure` equals `score`, between its rates linearly.

    `curve` are records of one seed, lowest rate first, up to the best: higher rates score less and forget more.
    Outside the curve, its nearer end counts.
    """
    points = [(record[measure], retention(record)) for record in curve]
    if score <= points[0][0]:
        return points[0][1]
    for (low, kept), (high, kept_then) in itertools.pairwise(points):
        if low <= score <= high:
            return kept_then if high == low else kept + (kept_then - kept) * (score - low) / (high - low)
    return points[-1][1]


def trade_off(study: BracketedStudy, method: Trial) -> list[tuple[float, float, float]]:
    """(learning rate, validation exact match, retention) of the tuning runs, means over seeds, lowest rate first."""
    points: dict[float, list[tuple[float, float]]] = {}
    for record in study.tuning_runs(method):
        points.setdefault(record["lr"], []).append((record["validation_exact"], retention(record)))
    return [(lr, *map(statistics.fmean, zip(*points[lr], strict=True))) for lr in sorted(points)]


def best_gap(study: BracketedStudy, method: Trial, learnt: float = 0.1) -> float | None:
    """The most that a preset retains beyond full fine-tuning at equal validation score, over its learning rates.

    Means of the tuning seeds; rates whose score is below `learnt` are left out, and None is returned if all are.
    """
    full = replace(method, preset=FULL)
    up_to = study.best(full)
    gaps: dict[float, list[float]] = {}
    for record in study.tuning_runs(method):
        line = [r for r in study.tuning_runs(full) if r["seed"] == record["seed"] and r["lr"] <= up_to]
        at_equal = retention_at(line, record["validation_exact"], "validation_exact")
        gaps.setdefault(record["lr"], []).append(retention(record) - at_equal)
    return max(
        (statistics.fmean(gaps[lr]) for lr, score, _ in trade_off(study, method) if score >= learnt), default=None
    )


def possible_presets(model: str) -> list[str]:
    """The presets that the model can take; says why of the others."""
    possible = []
    for preset in LEARNING_RATES:
        try:
            apply_preset(load_base(base_of(model))[0], preset)
            possible.append(preset)
        except ValueError as error:
            print(f"without {preset!r}: {error}", file=sys.stderr)
    return possible


def main(arguments: list[str] | None = None) -> int:
    given = study_parser("freezing", __doc__, "model", "workers").parse_args(arguments)
    make_repeatable()
    names = possible_presets(given.model)
    path = curve_path(given.output)
    for task in TASKS:
        starts = {Trial(given.model, task, name, 0, 0): LEARNING_RATES[name] for name in names}
        run_bracketed(starts, run, given.output, task, workers=given.workers)
        study, full = read_study(given.output), Trial(given.model, task, FULL, 0, 0)
        lower = [lr for lr in study.curve(full) if lr < study.best(full)]
        trials = [Trial(given.model, task, FULL, lr, seed) for seed in SEEDS for lr in lower]
        write_records(path, sort_records(run_missing(trials, run, path, f"{task}, curve", given.workers), Trial))
    print(f"stored in {given.output} and {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
