"""What a record says: verdicts and medians, computed from its raw runs."""

import re
from statistics import mean, median

from .worker import FTKIT, TRL

WARM_UP = 3  # steps whose times do not count: ftkit traces its memory in the first two
LOSS_TOLERANCE = 1e-5  # nats per token, between ftkit and TRL
RANKS_TOLERANCE = 1e-5  # between one process and two ranks, which sum in another order
MEMORY_TOLERANCE = 5.0  # per cent, between the estimated and the measured peak
TARGET = 1.1  # times TRL's throughput
GIB = 2**30


def verdicts(record: dict) -> dict[str, bool]:
    """Each thing that has to hold, and whether it does, for the parts that the record has."""
    lifecycle = lifecycle_verdicts(record["lifecycle"]) if "lifecycle" in record else {}
    return lifecycle | comparison_verdicts(record.get("comparisons", []))


def lifecycle_verdicts(lifecycle: dict) -> dict[str, bool]:
    runs = lifecycle["runs"]
    lora, full = runs["lora, 1 process"], runs["full, 1 process"]
    killed = runs["lora, killed and resumed"]
    part = len(killed["losses"])
    repeated = lora["losses"][:part]  # by the runs that stopped earlier
    found = {
        "the doctor finds no error": lifecycle["doctor"]["status"] == 0,
        "the training loss fell": fell(lora["losses"]),
        "LoRA: losses on 2 ranks equal": gap(runs["lora, 2 ranks"]["losses"], repeated) <= RANKS_TOLERANCE,
        "full: losses on 2 ranks equal": gap(runs["full, 2 ranks"]["losses"], full["losses"]) <= RANKS_TOLERANCE,
        "killed and resumed: losses bitwise equal": part > killed["killed_after"] >= 1 and killed["losses"] == repeated,
        "the merge was verified": lora["merge"] is not None,
        "the memory estimate holds": all(
            run["memory"] and abs(memory_off(run["memory"])) <= MEMORY_TOLERANCE for run in runs.values()
        ),
    }
    if calls := lifecycle.get("exact_calls"):
        found["more exact calls than before"] = sum(calls["after"]) > sum(calls["before"])
    return found


def comparison_verdicts(comparisons: list[dict]) -> dict[str, bool]:
    found = {}
    for each in comparisons:
        name = f"{each['model']}, {each['method']}, {each['steps']} steps"
        found[f"{name}: losses equal to TRL's"] = loss_gap(each) <= LOSS_TOLERANCE
        if len(of(each, FTKIT)) > 1:  # one run's time says little
            found[f"{name}: {TARGET} times TRL's throughput"] = speed_up(each, TRL)[0] >= TARGET
    return found


def gap(losses: list[float], others: list[float]) -> float:
    """The largest difference; infinite for runs of different length, or of no steps."""
    if len(losses) != len(others):
        return float("inf")
    return max((abs(a - b) for a, b in zip(losses, others, strict=True)), default=float("inf"))


def fell(losses: list[float]) -> bool:
    """Whether the mean of the last quarter is below that of the first."""
    quarter = max(1, len(losses) // 4)
    return sum(losses[-quarter:]) < sum(losses[:quarter])


def memory_off(line: str) -> float:
    """Per cent by which the estimated peak was above the measured one, as the run said."""
    return float(re.search(r"measured \(([+-][\d.]+)%\)", line)[1])


def loss_gap(comparison: dict) -> float:
    """The largest difference of any step's loss between a run of ftkit and one of TRL; infinite where steps lack."""
    pairs = [(a["losses"], b["losses"]) for a in of(comparison, FTKIT) for b in of(comparison, TRL)]
    whole = all(len(losses) == comparison["steps"] for pair in pairs for losses in pair)
    return max(gap(*pair) for pair in pairs) if pairs and whole else float("inf")


def throughputs(comparison: dict, contender: str) -> list[float]:
    """Tokens per second of each run of a contender, after the warm-up."""
    tokens = sum(comparison["tokens"][WARM_UP:])
    return [tokens / sum(after_warm_up(run["seconds"])) for run in of(comparison, contender)]


def cpu_per_step(comparison: dict, contender: str) -> list[float]:
    """Processor seconds of a step: of each run, the mean after the warm-up."""
    return [mean(after_warm_up(run["cpu_seconds"])) for run in of(comparison, contender)]


def speed_up(comparison: dict, other: str) -> tuple[float, float, float]:
    """How many times `other`'s throughput is ftkit's: the median over neighbouring runs, the least and the most."""
    ratios = [a / b for a, b in zip(throughputs(comparison, FTKIT), throughputs(comparison, other), strict=True)]
    return median(ratios), min(ratios), max(ratios)


def of(comparison: dict, contender: str) -> list[dict]:
    return [run for run in comparison["runs"] if run["contender"] == contender]


def after_warm_up(times: list[float]) -> list[float]:
    """Those of step WARM_UP + 1 and later: the first step has no time, because nothing marks its beginning."""
    return times[WARM_UP - 1 :]


def text(record: dict) -> str:
    """The record as text."""
    model = record["model"]
    lines = [f"{model['file']} ({model['weights']}), {record['lifecycle']['data']}"]
    lines += [f"{'yes' if holds else 'NO':4}{what}" for what, holds in verdicts(record).items()]
    for name, run in record["lifecycle"]["runs"].items():
        lines.append(f"{name}: {median(run['seconds']):.2f} s per step; {run['memory']}")
    if calls := record["lifecycle"].get("exact_calls"):
        lines.append(
            f"exact calls: {sum(calls['before'])} before, {sum(calls['after'])} after, of {len(calls['after'])}"
        )
    for each in record["comparisons"]:
        lines.append(f"\n{each['model']}, {each['method']}, {each['steps']} steps of {each['batch_size']} examples")
        lines.append(f"largest loss difference between ftkit and TRL: {loss_gap(each):.1e}")
        for name in dict.fromkeys(run["contender"] for run in each["runs"]):
            speeds, cpu = throughputs(each, name), cpu_per_step(each, name)
            peak = max(run["peak_rss_bytes"] for run in of(each, name)) / GIB
            ratio, least, most = speed_up(each, name)
            lines.append(
                f"{name:36} {spread(speeds)} tokens/s  {spread(cpu, '.3f')} CPU s per step  {peak:.2f} GiB  "
                f"ftkit: {ratio:.2f}× ({least:.2f} to {most:.2f})"
            )
    return "\n".join(lines)


def spread(values: list[float], form: str = ".0f") -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
