"""The targets of a run, each judged from raw records; None where the run does not tell."""

from collections import defaultdict
from statistics import median
from typing import NamedTuple

from experiments.optimizer_speed.optimizers import FREE, FUSED

from .mfu import DATA_SHEETS
from .steps import CONTENDERS

F_OVER_FUSED, MEMORY_ERROR, MFU = 1.05, 0.05, 0.5  # targets
LOSS_GAP = 0.01  # of bfloat16 arithmetic in another order
NO_EXTRA = 2**20  # bytes that count as none
WARM_UP = 4  # steps of a run that are not counted: kernels are chosen, and code is compiled
RUNS = ("1B", "1B compiled", "8B", "8B compiled")
COMPUTED = "equal masks", "equal losses"  # targets that small shapes on a CPU can meet, too


class Verdict(NamedTuple):
    target: str
    met: bool | None
    measured: str


def by_step(records: list[dict]) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for record in records:
        found[record["step"]].append(record)
    return found


def first(records: list[dict], key: str) -> dict | None:
    """The first record that has `key`."""
    return next((record for record in records if key in record), None)


def verdicts(records: list[dict]) -> list[Verdict]:
    """All targets, in the order of the steps."""
    steps = by_step(records)
    environment = first(steps["environment"], "device") or {"device": "unknown", "tiny": True}
    found = [_masks(steps["masks"]), *_optimizer(steps["optimizer"]), _memory(steps["memory"])]
    found += [_mfu(steps, environment["device"], label) for label in ("1B", "8B")]
    found += [_losses(steps), *(_peer(steps, name) for name in CONTENDERS[1:])]
    if environment["tiny"]:
        found = [v if v.target.startswith(COMPUTED) else Verdict(v.target, None, "needs CUDA") for v in found]
    return found


def optimizer_ratios(records: list[dict]) -> dict[str, list[float]]:
    """Seconds of each candidate over those of fused AdamW in the same round."""
    rounds = [record["seconds"] for record in records if "round" in record]
    return {name: [taken[name] / taken[FUSED] for taken in rounds] for name in (rounds[0] if rounds else ())}


def step_seconds(records: list[dict]) -> list[float]:
    """Seconds of the steps that count; those that a cut-off run lacks are missing."""
    times = [record["seconds"][WARM_UP:] or record["seconds"] for record in records if _has_times(record)]
    return [second for part in times for second in part]


def tokens_per_second(records: list[dict]) -> float | None:
    """By the median step; None where none was measured."""
    sizes, times = first(records, "tokens_per_step"), step_seconds(records)
    return sizes["tokens_per_step"] / median(times) if sizes and times else None


def mfu(records: list[dict], peak: float | None) -> float | None:
    """Model FLOPs utilisation of a fine-tune, by notebook 11's definition."""
    speed = tokens_per_second(records)
    return speed * first(records, "flops_per_token")["flops_per_token"] / peak if speed and peak else None


def matmul_flops(records: list[dict]) -> float | None:
    """FLOP/s of the matrix product, by the median."""
    found = first(records, "matmul_flops")
    return found["matmul_flops"] / median(found["matmul_seconds"]) if found else None


def copy_bandwidth(records: list[dict]) -> float | None:
    """Bytes read and written in a second, by the median."""
    found = first(records, "copy_bytes")
    return found["copy_bytes"] / median(found["copy_seconds"]) if found else None


def peer_records(steps: dict[str, list[dict]], name: str) -> list[dict]:
    """Of a contender's runs, there and back."""
    return [record for step in (f"peer {name}", f"peer {name}, again") for record in steps.get(step, [])]


def _has_times(record: dict) -> bool:
    return isinstance(record.get("seconds"), list)


def _masks(records: list[dict]) -> Verdict:
    found = [record for record in records if "differing" in record]
    target = "equal masks: an optimizer step keeps the elements that `gradient_mask` keeps"
    if not found:
        return Verdict(target, None, "not measured")
    elements, differing = (sum(record[key] for record in found) for key in ("elements", "differing"))
    by_kernel, steps = (sum(record[key] for record in found) for key in ("by_kernel", "steps"))
    blind = any(record["differing_from_another_seed"] == 0 for record in found)  # then equality says nothing
    said = f"{differing:,} of {elements:,} differ; the kernel took {by_kernel} of {steps} steps"
    return Verdict(target, differing == 0 and not blind, said + ", and another seed looks the same" * blind)


def _optimizer(records: list[dict]) -> list[Verdict]:
    time = f"task-free child-tuning takes at most {F_OVER_FUSED} times fused AdamW's step"
    memory = "task-free child-tuning needs no more extra memory than fused AdamW"
    ratios, extra = optimizer_ratios(records), {r["candidate"]: r["extra"] for r in records if "candidate" in r}
    found = [Verdict(time, None, "not measured"), Verdict(memory, None, "not measured")]
    if ratios:
        middle, least, most = median(ratios[FREE]), min(ratios[FREE]), max(ratios[FREE])
        found[0] = Verdict(time, middle <= F_OVER_FUSED, f"{middle:.3f} times ({least:.3f} to {most:.3f})")
    if {FREE, FUSED} <= extra.keys():
        more = extra[FREE] - extra[FUSED]
        found[1] = Verdict(memory, more <= NO_EXTRA, f"{more / 1e6:+.1f} MB")
    return found


def _memory(records: list[dict]) -> Verdict:
    target = f"estimated peaks are within {MEMORY_ERROR:.0%} of the measured ones"
    errors = [r["estimated_bytes"] / r["measured_bytes"] - 1 for r in records if "plan" in r]
    if not errors:
        return Verdict(target, None, "not measured")
    worst = max(errors, key=abs)
    return Verdict(target, abs(worst) <= MEMORY_ERROR, f"worst of {len(errors)} plans {worst:+.1%}")


def _mfu(steps: dict[str, list[dict]], device: str, label: str) -> Verdict:
    target = f"full fine-tune of the {label} shape reaches an MFU of {MFU:.0%}"
    peak = DATA_SHEETS.get(device) or matmul_flops(steps["ceilings"])
    found = {name: mfu(steps[name], peak) for name in RUNS if name.startswith(label)}
    found = {name: value for name, value in found.items() if value is not None}
    if not found:
        return Verdict(target, None, "not measured")
    best = max(found, key=found.get)
    return Verdict(target, found[best] >= MFU, f"{found[best]:.1%} ({best})")


def _losses(steps: dict[str, list[dict]]) -> Verdict:
    target = f"equal losses: all programs begin with the same one, to {LOSS_GAP:.0%}"
    found = [r["losses"][0] for name in CONTENDERS for r in peer_records(steps, name) if r.get("losses")]
    if len(found) < 2:
        return Verdict(target, None, "not measured")
    gap = max(found) / min(found) - 1
    return Verdict(target, gap <= LOSS_GAP, f"{min(found):.4f} to {max(found):.4f}")


def _peer(steps: dict[str, list[dict]], name: str) -> Verdict:
    ours, theirs = (tokens_per_second(peer_records(steps, who)) for who in ("ftkit", name))
    target = f"as many tokens per second as {name}"
    if not ours or not theirs:
        return Verdict(target, None, "not measured")
    return Verdict(target, ours >= theirs, f"{ours / theirs:.2f} times")
