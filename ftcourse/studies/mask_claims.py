"""What the mask tournament says about the claims of its methods' authors: one ledger row each."""

import math
import statistics
from collections.abc import Iterable, Sequence

from ftcourse.claims import Ledger
from ftcourse.intervals import Interval

from .masks import (
    ADAMW,
    ADVISED_P,
    DOMAINS,
    F_FEWER,
    F_MORE,
    FISHER,
    FISHER_MORE,
    LIFT,
    LORA,
    LOSS,
    MAGMA,
    MAGNITUDE,
    RANDOM,
    UPDATE,
    WORTHWHILE,
    F,
    Tournament,
)


def add_child_tuning_claims(ledger: Ledger, study: Tournament) -> None:
    """The claims about task-free child-tuning, tested on the study's runs."""
    wright = "Wright 2022, transformer_central and its video on child-tuning under FSDP"
    starts = {task: study.effect(task, F, LOSS, epoch=0) for task in study.tasks}  # above 0: a higher loss
    ends = {task: study.effect(task, F) for task in study.tasks}
    lags = {task: ends[task] if starts[task].low > 0 else starts[task] for task in study.tasks}
    _add(
        ledger,
        study,
        "child-tuning lags in the first epochs, then exceeds",
        wright,
        lags,
        "loss after epoch 1 higher by "
        + _each(starts, Interval.in_own_unit)
        + _lag_at_one_rate(study)
        + "; score at the end, percentage points: "
        + _each(ends),
    )
    rivals = {
        f"{task}, p = {method.split()[1]}": study.effect(task, F, against=method)
        for task in study.tasks
        for method in (F_FEWER, F_MORE)
        if method in study.methods(task)
    }
    _add(
        ledger,
        study,
        "a reserve_p of 30 to 35 % is a good start",
        wright,
        {name: no_worse(found) for name, found in rivals.items()},
        "p = 0.3 against other values, percentage points: " + _each(rivals),
        worthwhile=0.0,
        every=True,
    )
    wider = _wider(study, F)
    _add(
        ledger,
        study,
        "task-free child-tuning generalises better than AdamW",
        "Xu et al. 2021; Wright 2022",
        wider,
        f"p = {ADVISED_P}, each at its best learning rate, percentage points: {_each(wider)}",
    )
    spread = {task: steadier(study.ends(task, F), study.ends(task, ADAMW)) for task in study.tasks}
    deviations = {
        task: [100 * statistics.stdev(study.ends(task, method)) for method in (F, ADAMW)] for task in study.tasks
    }
    _add(
        ledger,
        study,
        "child-tuning's results vary less from seed to seed",
        wright,
        spread,
        "standard deviations of F and AdamW, percentage points: "
        + _each(deviations, lambda pair: " and ".join(f"{s:.1f}" for s in pair)),
        worthwhile=0.0,
    )


def add_mask_claims(ledger: Ledger, study: Tournament) -> None:
    """The claims about masks chosen otherwise, tested on the study's runs."""
    driven = {}
    for task in study.tasks:
        ran = [method for method in (FISHER, FISHER_MORE) if method in study.methods(task)]
        driven |= _wider(study, study.best_of(task, *ran), [task])
    _add(
        ledger,
        study,
        "task-driven child-tuning generalises better than AdamW",
        "Xu et al. 2021",
        driven,
        f"D at the better p of 0.1 and 0.3, percentage points: {_each(driven)}",
    )
    for claim, method in (
        ("an optimizer with randomly masked updates beats the dense one", UPDATE),
        ("Magma is a drop-in replacement with consistent gains over Adam", MAGMA),
    ):
        gains = {task: study.effect(task, method) for task in study.tasks}
        against = {task: study.effect(task, method, against=F) for task in study.tasks}
        text = f"against AdamW, percentage points: {_each(gains)}; against masked gradients (F): {_each(against)}"
        _add(ledger, study, claim, "Joo et al. 2026, on pretraining", gains, text)
    _versus(
        ledger,
        study,
        "a fixed random mask at a larger learning rate matches LoRA",
        "Xu and Zhang 2024, Random Masking",
        (RANDOM, LORA),
        match=True,
    )
    _versus(
        ledger,
        study,
        "training the largest weights matches or exceeds LoRA at a comparable budget",
        "Super-Tuning 2026",
        (MAGNITUDE, LORA),
        match=True,
    )
    lift = "Liu et al. 2025, LIFT"
    _versus(ledger, study, "the largest weights are a poor choice before rank reduction", lift, (LIFT, MAGNITUDE))
    _versus(ledger, study, "the largest weights after rank reduction beat full fine-tuning", lift, (LIFT, ADAMW))
    more = {task: study.effect(task, LIFT, "kept") for task in study.tasks}
    text = f"facts kept in the pretraining format, percentage points: {_each(more)}"
    _add(ledger, study, "LIFT keeps more of what the model knew than full fine-tuning", lift, more, text)


def steadier(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Pitman and Morgan's comparison of two paired variances: above 0 where `one` varies less.

    The correlation of differences and sums, with its sign turned, and its 95 % interval by Fisher's z. Raises
    ValueError for fewer than four pairs.
    """
    if len(one) < 4:
        raise ValueError(f"{len(one)} pairs are too few for an interval of a correlation: give four or more")
    sums = [a + b for a, b in zip(one, other, strict=True)]
    gaps = [b - a for a, b in zip(one, other, strict=True)]
    if min(statistics.pstdev(sums), statistics.pstdev(gaps)) == 0:
        return Interval(0.0, -1.0, 1.0)
    r = max(-0.999999, min(0.999999, statistics.correlation(sums, gaps)))
    half = 1.96 / math.sqrt(len(sums) - 3)
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def _lag_at_one_rate(study: Tournament) -> str:
    """How much higher F's loss is after the first epoch where both were run at AdamW's best rate, in words."""
    found = {}
    for task in study.tasks:
        rate = study.rate(task, ADAMW)
        runs = [study.tuning_curves(task, method, rate) for method in (F, ADAMW)]
        if all(runs):
            found[task] = statistics.fmean(one[0] - other[0] for one, other in zip(*runs, strict=True))
    return f", at AdamW's rate by {_each(found, lambda gap: f'{gap:+.2f}')}" if found else ""


def _wider(study: Tournament, method: str, tasks: Iterable[str] = ()) -> dict[str, Interval]:
    """The method's effect on every task's test questions and, where there are, on those of held-out domains."""
    found = {}
    for task in tasks or study.tasks:
        found[task] = study.effect(task, method)
        if task.startswith("chat"):
            found[f"{task} in held-out domains"] = study.effect(task, method, DOMAINS)
    return found


def _versus(ledger, study, claim: str, source: str, pair: tuple[str, str], match: bool = False) -> None:
    """One method against another: better, or if `match`, no worse by the smallest effect that matters."""
    gains = {task: study.effect(task, pair[0], against=pair[1]) for task in study.tasks}
    rates = {task: " and ".join(f"{study.rate(task, method):g}" for method in pair) for task in study.tasks}
    text = f"{pair[0]} against {pair[1]}, percentage points: {_each(gains)}; learning rates: {_each(rates, str)}"
    held = {task: no_worse(found) for task, found in gains.items()} if match else gains
    _add(ledger, study, claim, source, held, text, worthwhile=0.0 if match else WORTHWHILE)


def no_worse(found: Interval) -> Interval:
    """Above 0 where a method is not worse by as much as WORTHWHILE."""
    return Interval(*(bound + WORTHWHILE for bound in (found.mean, found.low, found.high)))


def _add(
    ledger: Ledger,
    study: Tournament,
    claim: str,
    source: str,
    effects: dict[str, Interval],
    measured: str,
    *,
    worthwhile: float = WORTHWHILE,
    every: bool = False,
) -> None:
    """One row for all places. Supported in all of them or, unless it is meant of `every` one, under that condition."""
    holds = [place for place, found in effects.items() if found.low > 0]
    only_if = f"on {', '.join(holds)}" if holds and len(holds) < len(effects) and not every else ""
    if every or not only_if:  # the place that is worst for the claim, or if it holds nowhere, the best
        judge = min if every or holds else max
        held = judge(effects.values(), key=lambda found: (found.low, found.high) if every or holds else found.high)
    else:
        held = effects[holds[0]]
    seeds = min(study.seeds(task) for task in study.tasks)
    ledger.add(claim, source, held, measured, seeds=seeds, worthwhile=worthwhile, only_if=only_if)


def _each(values: dict, text=lambda value: value.points) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in values.items())
