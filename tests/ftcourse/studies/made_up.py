"""A made-up mask tournament whose answer is known."""

from ftcourse.studies.bracketing import TUNING_SEEDS
from ftcourse.studies.masks import CONTROL, CONTROLS, METHODS, Tournament, Trial, control_rate, starts
from ftcourse.studies.records import write_records

NOISE = (0.00, 0.002, -0.001, 0.0015, -0.002, 0.001)
TASKS = ("chat-96", "truth-500")


def measures(task: str, split: str, score: float, first_loss: float) -> dict[str, list[float]]:
    found = {f"{split}_exact": [0.1, score], f"{split}_loss": [first_loss, 1.0], "train_loss": [3.0, 0.1]}
    if task.startswith("chat") and split == "test":
        found |= {"heldout_domains_exact": [0.0, score - 0.2], "heldout_domains_loss": [first_loss, 1.0]}
    return found


def record(trial: Trial, score: float, first_loss: float = 2.0, kept: float = 0.5) -> dict:
    curves = measures(trial.task, "validation" if trial.seed in TUNING_SEEDS else "test", score, first_loss)
    ends = {measure: values[-1] for measure, values in curves.items()}
    extra = {} if trial.seed in TUNING_SEEDS else {"kept": kept}
    return {**trial.__dict__, **ends, "curves": curves, "trained": 100, **extra, "seconds": 1.0}


def tournament(folder, tasks=TASKS, *, scores=None, first_loss=None, kept=None, spread=None, in_domains=None):
    """Every method ends at 0.5 plus noise of its own, or at what `scores` says by (task, method).

    The best rate is the middle one. `first_loss` and `kept`: by (task, method); `spread`: factor of the noise, by
    method; `in_domains`: added in held-out domains, by method.
    """
    records, controls = [], []
    for task in tasks:
        for method, rates in starts(task).items():
            best = sorted(rates)[1]
            for seed in TUNING_SEEDS:
                records += [
                    record(Trial(task, method.method, lr, seed), 0.4 if lr == best else 0.2, 2.5) for lr in rates
                ]
        for place, method in enumerate((*METHODS[task], CONTROL)):
            for seed in range(len(NOISE)):
                lr = control_rate(records, task) if method == CONTROL else sorted(starts(task)[key(task, method)])[1]
                noise = NOISE[(seed + 2 * place) % len(NOISE)] * (spread or {}).get(method, 1)
                made = record(
                    Trial(task, method, lr, seed),
                    (scores or {}).get((task, method), 0.5) + noise,
                    (first_loss or {}).get((task, method), 2.0) + noise,
                    (kept or {}).get((task, method), 0.5) + noise,
                )
                if task.startswith("chat"):
                    made["curves"]["heldout_domains_exact"][-1] += (in_domains or {}).get(method, 0)
                (controls if method == CONTROL else records).append(made)
    write_records(folder / "masks.jsonl", records)
    write_records(folder / CONTROLS, controls)
    return Tournament(folder / "masks.jsonl")


def key(task: str, method: str) -> Trial:
    return Trial(task, method, 0.0, -1)
