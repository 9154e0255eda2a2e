"""Summaries of the comparison's final runs: means, one configuration against another seed by seed, and the table."""

import statistics
from collections.abc import Sequence

from .methods import ARMS, BASE, GRID, REFERENCE, rates_to_try


def mean(runs: Sequence[dict], measure: str) -> float:
    return statistics.fmean(run[measure] for run in runs)


def known(run: dict) -> float:
    """The share of the almanac's facts that the model still knows, mean over domains."""
    return statistics.fmean(run["pages_right"].values())


def pairs(records: Sequence[dict], task: str, row: str, other: str, model: str = "") -> list[tuple[dict, dict]]:
    """The runs of two rows, each at its best rate, seed by seed. Raises ValueError for seeds that do not match."""
    found = list(zip(final_runs(records, task, row, model), final_runs(records, task, other, model), strict=True))
    if any(a["seed"] != b["seed"] for a, b in found):
        raise ValueError(f"{row!r} and {other!r} were not run with the same seeds")
    return found


def ratios(records: Sequence[dict], task: str, row: str, other: str, measure: str) -> list[float]:
    return [a[measure] / b[measure] for a, b in pairs(records, task, row, other)]


def at_rate_of(records: Sequence[dict], task: str, row: str, other: str) -> list[dict]:
    """Return the runs of a configuration at the learning rate that is best for another, on its final seeds."""
    theirs = final_runs(records, task, other)
    rate, seeds = theirs[0]["lr"], {run["seed"] for run in theirs}
    return [r for r in of_task(records, task) if (r["row"], r["lr"]) == (row, rate) and r["seed"] in seeds]


NO_BREAK_SPACE, JOINER = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
TUNING_SEED = 100  # chooses the rates; its runs are in no result
MEASURES = ("test_loss", "test_exact", "test_stop", "test_calls")
HEADS = {
    "row": "method",
    "lr": "rate",
    "test_loss": "validation loss",
    "test_exact": "exact match",
    "test_stop": "stop rate",
    "test_calls": "calls exact",
    "forgotten": "facts forgotten",
    "most_forgotten": "most forgotten domain",
    "time": "step time",
    "trainable": "trainable",
    "adapter_bytes": "on disk",
}


def scores(records: Sequence[dict], row: str) -> dict[float, tuple[float, float]]:
    """By learning rate, what the tuning runs of a row are compared by: exact answers, and of equals the loss."""
    runs = [r for r in records if r["row"] == row and r["seed"] == TUNING_SEED]
    return {r["lr"]: (r["test_exact"], -r["test_loss"]) if "test_loss" in r else (-1.0, 0.0) for r in runs}


def best_rate(records: Sequence[dict], row: str) -> float:
    """Raises ValueError where no tuning run of the row is among the records."""
    if not (found := scores(records, row)):
        raise ValueError(f"no run of {row!r} with seed {TUNING_SEED}, which chooses its rate")
    return max(found, key=found.__getitem__)


def final_runs(records: Sequence[dict], task: str, row: str, model: str = "") -> list[dict]:
    """Return the runs of a configuration at its best learning rate, on the seeds that did not choose that rate."""
    mine = of_task(records, task, model)
    lr = 0.0 if row == BASE else best_rate(mine, row)
    runs = [r for r in mine if r["row"] == row and r["lr"] == lr and r["seed"] != TUNING_SEED]
    return sorted(runs, key=lambda r: r["seed"])


def of_task(records: Sequence[dict], task: str, model: str = "") -> list[dict]:
    return [r for r in records if (r["task"], r["model"]) == (task, model)]


def summarise(records: Sequence[dict], task: str, model: str = "") -> list[dict]:
    """Return a line per configuration with final runs: `{"mean", "low", "high"}` of a measure over the seeds, by HEADS.

    `forgotten` is the share of the almanac's facts, mean over domains, that the base model knew and this one does
    not; `time` the median step in that of the row "lora" with the same seed.
    """
    mine = of_task(records, task, model)
    run_rows = [row for row in (BASE, *ARMS) if any(r["row"] == row for r in mine)]
    runs = {row: final_runs(mine, task, row, model) for row in run_rows}
    base, reference = ({r["seed"]: r for r in runs.get(row, ())} for row in (BASE, REFERENCE))
    return [line(row, each, base, reference) for row, each in runs.items() if each]


def line(row: str, runs: list[dict], base: dict[int, dict], reference: dict[int, dict]) -> dict:
    whole = [run for run in runs if "test_loss" in run]
    found = {"row": row, "lr": runs[0]["lr"], "seeds": len(runs), "diverged": len(runs) - len(whole)}
    for measure in MEASURES:
        found[measure] = spread([run[measure] for run in whole if run[measure] is not None])
    lost = [forgotten(base[run["seed"]], run) for run in whole if run["seed"] in base]
    found["forgotten"] = spread([statistics.fmean(by_domain.values()) for by_domain in lost])
    by_domain = {d: statistics.fmean(each[d] for each in lost) for d in (lost[0] if lost else ())}
    found["forgotten_by_domain"] = {domain: round(share, 4) for domain, share in by_domain.items()}
    times = [r["step_ms"] / reference[r["seed"]]["step_ms"] for r in runs if r["step_ms"] and r["seed"] in reference]
    found["time"] = spread(times)
    return found | {"trainable": runs[0]["trainable"], "adapter_bytes": runs[0]["adapter_bytes"]}


def forgotten(base: dict, run: dict) -> dict[str, float]:
    """Return, by domain, the fraction of the almanac's facts that the model has forgotten."""
    return {domain: known - run["pages_right"][domain] for domain, known in base["pages_right"].items()}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, high = round(min(values), 4), round(max(values), 4)
    return {"mean": round(statistics.fmean(values), 4), "low": low, "high": high}


def unbracketed_note(records: Sequence[dict], row: str) -> str:
    """What to say of a best rate without a worse one on either side; an empty text where it has both."""
    lr = best_rate(records, row)
    if lr in (GRID[0], GRID[-1]):
        return f"{row}: the best rate, {lr:g}, is the last of the grid"
    if rates_to_try(scores(records, row), lr):
        return f"{row}: the best rate, {lr:g}, was not bracketed"
    return ""


def markdown(lines: Sequence[dict], heads: Sequence[str] = tuple(HEADS)) -> str:
    """Means, and the least and the most over the seeds; columns in which no row has a value are left out."""
    cells = [[_cell(head, line) for head in heads] for line in lines]
    kept = [i for i, _ in enumerate(heads) if any(row[i] for row in cells)]
    rows = [[HEADS[head] for head in heads], ["---"] * len(heads), *cells]
    return "".join(f"| {' | '.join(row[i] for i in kept)} |\n" for row in rows)


def _cell(head: str, line: dict) -> str:
    if head == "row":
        return line["row"] + (f" ({line['diverged']} of {line['seeds']} diverged)" if line["diverged"] else "")
    if head == "lr":
        return f"{line['lr']:g}" if line["lr"] else ""
    if head == "most_forgotten":
        domain, share = max(line["forgotten_by_domain"].items(), key=lambda item: item[1], default=("", 0.0))
        return f"{domain} {share:.0%}" if share > 0 else ""
    if head == "trainable":
        return f"{line[head]:,}" if line[head] else ""
    if head == "adapter_bytes":
        return _size(line[head])
    if (value := line[head]) is None:
        return ""
    form, unit = {"test_loss": ("{:.2f}", ""), "time": ("{:.2f}", "×")}.get(head, ("{:.0%}", "%"))
    mean, low, high = (form.format(value[key]).removesuffix(unit) for key in ("mean", "low", "high"))
    # Without these signs, which nobody sees, browsers break a range in two.
    return f"{mean}{unit}" if low == high else f"{mean}{unit}{NO_BREAK_SPACE}({low}{JOINER}–{JOINER}{high})"


def _size(size: float) -> str:
    """Bytes as in 310 kB; nothing for nothing."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g}{NO_BREAK_SPACE}{unit}" if size else ""
        size /= 1000
    return f"{size:.3g}{NO_BREAK_SPACE}GB"
