"""What a record of `experiments.lora_speed` says: medians, ratios and differences, computed from its raw steps."""

import json
from pathlib import Path
from statistics import median

GIB = 2**30
NAMES = {"trl": "plain TRL", "liger": "TRL with Liger", "unsloth": "Unsloth"}


def read_record(path: str | Path) -> dict | None:
    """The record, or None where none was made yet."""
    path = Path(path)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def step_seconds(record: dict, name: str) -> float:
    """Median seconds of a contender's steps, those of the warm-up left out."""
    return median(record["contenders"][name]["seconds"][record["settings"]["warm_up"] :])


def speed_up(record: dict, name: str) -> float:
    """How many times faster than plain TRL a step is."""
    return step_seconds(record, "trl") / step_seconds(record, name)


def memory_ratio(record: dict, name: str) -> float | None:
    """Peak bytes as a part of plain TRL's; None where no peak was measured."""
    peaks = [record["contenders"][who]["peak_bytes"] for who in (name, "trl")]
    return None if None in peaks else peaks[0] / peaks[1]


def loss_gap(record: dict, name: str) -> float:
    """The largest difference between its losses and plain TRL's, step by step, in nats a token."""
    ours, theirs = (record["contenders"][who]["losses"] for who in (name, "trl"))
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def conditions(record: dict) -> str:
    """Device, date, model and sizes in a sentence, then the versions that each contender ran with."""
    s, contenders = record["settings"], record["contenders"]
    devices = ", ".join(sorted({found["device"] for found in contenders.values()}))
    lines = [
        f"{devices}, {record['date']}: {s['model']}, LoRA r = {s['r']}, {s['batch_size']} rows of "
        f"{s['length']} tokens a step, {s['steps']} steps after {s['warm_up']} of warm-up"
    ]
    for name, found in contenders.items():
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
        checkpointing = found["gradient_checkpointing"]
        lines.append(f"{NAMES[name]}: {versions}; gradient checkpointing {checkpointing}")
    return "\n".join(lines)


def table(record: dict) -> str:
    """The contenders as text: median step, speed-up and peak against plain TRL's where it ran, loss gap."""
    lines = [f"{'':16} {'s a step':>9} {'speed-up':>9} {'peak, GiB':>10} {'largest loss difference':>24}"]
    for name, found in record["contenders"].items():
        peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / GIB:.2f}"
        ratio = gap = "-"
        if "trl" in record["contenders"]:
            ratio, gap = f"{speed_up(record, name):.2f}×", f"{loss_gap(record, name):.4f}"
        seconds = f"{step_seconds(record, name):.4f}"
        lines.append(f"{NAMES[name]:16} {seconds:>9} {ratio:>9} {peak:>10} {gap:>24}")
    return f"{conditions(record)}\n\n" + "\n".join(lines)
