"""What the throughput records say: a table, and each target met or missed. Every figure is computed from the runs."""

from statistics import median

from experiments.real_model.report import (
    LOSS_TOLERANCE,
    WARM_UP,
    after_warm_up,
    cpu_per_step,
    loss_gap,
    of,
    speed_up,
    spread,
    throughputs,
)
from experiments.real_model.worker import FTKIT, TRL, TRL_KEEPING

MIB = 2**20
TARGETS = {  # times the throughput of TRL's default
    "pocket-base, 1 process": 1.3,
    "SmolLM2-135M, 1 process": 1.2,
    "pocket-base, 2 ranks": 1.0,
    "SmolLM2-135M, 2 ranks": 1.0,
}


def markdown(records: list[dict]) -> str:
    if not records:
        return "No record is stored: `python -m experiments.throughput` makes it."
    studies = [comparison for name in TARGETS if (comparison := whole_rounds(records, name))]
    return "\n\n".join([_conditions(records), *([_table(studies), *map(verdict, studies)] if studies else [])])


def whole_rounds(records: list[dict], name: str) -> dict | None:
    """A study as `experiments.real_model.report` reads it, without the runs of a round that was broken off."""
    runs = [record for record in records if record["study"] == name]
    contenders = list(dict.fromkeys(run["contender"] for run in runs))
    rounds = min((sum(run["contender"] == name for run in runs) for name in contenders), default=0)
    if not rounds or TRL not in contenders:
        return None
    first = {key: runs[0][key] for key in ("study", "model", "steps", "batch_size", "tokens")}
    return {**first, "runs": [run for name in contenders for run in of({"runs": runs}, name)[:rounds]]}


def cpu_speed_up(comparison: dict, other: str = TRL) -> tuple[float, float, float]:
    """As `speed_up`, in processor seconds of a step: what other programs of the machine do changes them least."""
    pairs = zip(cpu_per_step(comparison, other), cpu_per_step(comparison, FTKIT), strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    return median(ratios), min(ratios), max(ratios)


def verdict(comparison: dict) -> str:
    """One study's targets, met or missed, and what bounds a missed one."""
    name = comparison["study"]
    target, (times, least, most) = TARGETS[name], speed_up(comparison, TRL)
    gap = loss_gap(comparison)
    met = "met" if times >= target else "missed"
    cpu = cpu_speed_up(comparison)
    same = f"equal to {LOSS_TOLERANCE:g}" if gap <= LOSS_TOLERANCE else f"**not equal: apart by {gap:.1e}**"
    words = (
        f"**{name}:** {times:.2f} times the tokens per second of TRL's default ({least:.2f} to {most:.2f}; wanted: "
        f"{target:g}; {met}), by processor seconds {cpu[0]:.2f} times ({cpu[1]:.2f} to {cpu[2]:.2f}). Losses of all "
        f"{comparison['steps']} steps: {same}."
    )
    if times < target and of(comparison, TRL_KEEPING):
        kept = cpu_speed_up(comparison, TRL_KEEPING)[0]
        words += (
            f" Against TRL without recomputation it is {kept:.2f} times by processor seconds: the model's forward and "
            "backward passes bound both."
        )
    return words


def _conditions(records: list[dict]) -> str:
    places = sorted({f"{r['processor']}, {r['machine']}, torch {r['torch']}, {r['date']}" for r in records})
    packages = sorted({", ".join(f"{name} {version}" for name, version in r["versions"].items()) for r in records})
    loads, cores = [max(r["load"]) for r in records], int(records[0]["machine"].split()[-2])
    shared = sum(load > cores + 1 for load in loads)
    words = f"{'; '.join(places)}; {'; '.join(packages)}. One thread a process, float32; load {min(loads):.1f} to "
    words += f"{max(loads):.1f}."
    if shared:
        words += (
            f" **The machine was shared:** in {shared} of {len(records)} runs other programs waited for a core, too, "
            "so tokens per second are too few and the ratios uncertain; processor seconds tell more."
        )
    return words


def _table(studies: list[dict]) -> str:
    head = ["study", "contender", "runs", "tokens/s", "processor s a step", "fastest step, ms", "peak, MiB"]
    lines = [head, ["---"] * len(head)]
    for study in studies:
        for name in dict.fromkeys(run["contender"] for run in study["runs"]):
            runs = of(study, name)
            lines.append(
                [
                    study["study"],
                    name,
                    str(len(runs)),
                    spread(throughputs(study, name)),
                    spread(cpu_per_step(study, name), ".3f"),
                    f"{1e3 * min(min(after_warm_up(run['seconds'])) for run in runs):,.0f}",
                    spread([run["peak_rss_bytes"] / MIB for run in runs]),
                ]
            )
    said = f"Medians, least and most; steps from the {WARM_UP + 1}th on. Peaks are resident bytes of all ranks, each "
    said += "with Python and its libraries."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{said}"
